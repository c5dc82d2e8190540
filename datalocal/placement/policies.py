"""The policies: pure functions (job, catalog, cluster) -> Plan. Data-local and the baselines it is measured against.

The order of nodes and shards in a cluster file or a listing never matters: everything is decided by names, rows and the
job's seed. `cluster` holds the nodes that are up; nobody else gets work.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from datalocal.catalog.model import Catalog
from datalocal.errors import PlacementError
from datalocal.placement.check import check
from datalocal.placement.model import Plan, StagePlan
from datalocal.placement.problem import Nodes
from datalocal.placement.replicas import either, kept_shards
from datalocal.placement.scene import Scene, capacity, evenly, outputs_of
from datalocal.spec.cluster import Cluster
from datalocal.spec.job import JobSpec

__all__ = [
    "Policy",
    "central_cached",
    "central_nas",
    "central_staged",
    "check",
    "data_local",
    "random",
    "reduce_then_ship",
    "san",
]


@dataclass(frozen=True, slots=True)
class Policy:
    """A pure function (job, catalog, cluster) -> Plan."""

    on: Callable[[Scene], Plan]
    """The same for who has a scene already: policies share what they find out about it."""

    def __call__(self, job: JobSpec, catalog: Catalog, cluster: Cluster) -> Plan:
        """Raises PlacementError: there is nothing to place, or nobody to place it on."""
        return self.on(Scene.of(job, catalog, cluster))


@Policy
def data_local(scene: Scene) -> Plan:
    """Every shard where one of its replicas lies, balanced; results stay next to the input's replicas."""
    held = scene.holders
    stages: list[StagePlan] = []
    if scene.job.preprocess is not None:
        workers = scene.where_it_lies
        preprocess = scene.preprocess(workers, held, scene.beside_the_input(workers))
        stages.append(preprocess)
        held = outputs_of(preprocess)
    if scene.job.train is not None:
        stages.append(scene.train_near(held, "output" if stages else "dataset"))
    return Plan(policy="data-local", stages=tuple(stages))


@Policy
def random(scene: Scene) -> Plan:
    """Every shard on a storage node drawn at random; no storage node stays empty while there are enough shards."""
    drawn = "drawn at random; it holds no replica"
    held = scene.holders
    stages: list[StagePlan] = []
    if scene.job.preprocess is not None:
        workers = scene.drawn(stream=0)
        preprocess = scene.preprocess(workers, held, scene.beside_the_input(workers), drawn)
        stages.append(preprocess)
        held = outputs_of(preprocess)
    if scene.job.train is not None:
        stages.append(scene.train(scene.drawn(stream=1), held, "output" if stages else "dataset", drawn))
    return Plan(policy="random", stages=tuple(stages))


@Policy
def central_nas(scene: Scene) -> Plan:
    """All work on the compute nodes; the storage nodes are their network disk, read again in every epoch."""
    central = _compute_nodes(scene, "central-nas")
    away = "no replica on a compute node"
    held = scene.holders
    stages: list[StagePlan] = []
    if scene.job.preprocess is not None:
        workers = scene.there_or_any(held, central, capacity)
        preprocess = scene.preprocess(workers, held, scene.beside_the_input(None), away)
        stages.append(preprocess)
        held = outputs_of(preprocess)
    if scene.job.train is not None:
        trainers = scene.there_or_any(held, central, evenly)
        stages.append(scene.train(trainers, held, "output" if stages else "dataset", away))
    return Plan(policy="central-nas", stages=tuple(stages))


@Policy
def central_staged(scene: Scene) -> Plan:
    """Every shard is copied once to a compute node's disk; all work, and all results, are there."""
    central = _compute_nodes(scene, "central-staged")
    workers = scene.spread(central, capacity if scene.job.preprocess is not None else evenly)
    there = scene.at(workers)
    staging = scene.stage(
        "staging", "dataset", workers, scene.holders, there, "no replica on a compute node: it is copied there once"
    )
    stages = [staging]
    if scene.job.preprocess is not None:
        stages.append(scene.stage("preprocess", "staged", workers, there, there))
    if scene.job.train is not None:
        stages.append(scene.stage("train", "output" if scene.job.preprocess is not None else "staged", workers, there))
    return Plan(policy="central-staged", stages=tuple(stages))


@Policy
def central_cached(scene: Scene) -> Plan:
    """All work on the compute nodes; a share of what trains stays on their disks, the rest is read again in every epoch.

    Of a job that only trains, the kept shards are copied before the first epoch, whole. A cache that fills while the first epoch
    reads would move as many bytes: each kept shard crosses the network once, either way.

    The share is `policy_options.cached_share`, of the shards, spread evenly over them; which ones never changes (any cache that
    evicts within an epoch keeps less, since every shard is read once in each).
    """
    central = _compute_nodes(scene, "central-cached")
    away = "no replica on a compute node"
    share = scene.job.policy_options.cached_share
    told = f"{away}: {1 - share:.0%} of the shards are not cached"
    if scene.job.preprocess is None:
        trainers = scene.there_or_any(scene.holders, central, evenly)
        copied = kept_shards(len(scene.catalog), share) & ~scene.holders.has(trainers)
        if not copied.any():
            return Plan(policy="central-cached", stages=(scene.train(trainers, scene.holders, "dataset", told),))
        there = scene.at(trainers)
        why = f"{away}: it is copied there once, and kept"
        staging = scene.stage("staging", "dataset", trainers, scene.holders, there, why)
        staging = replace(staging, assignments=staging.assignments.only(copied))
        train = scene.train(trainers, either(there, scene.holders, copied), "cached", told)
        return Plan(policy="central-cached", stages=(staging, train))
    workers = scene.there_or_any(scene.holders, central, capacity)
    beside = scene.beside_the_input(None)
    outputs = either(scene.at(workers), beside, kept_shards(len(scene.catalog), share))
    stages = [scene.preprocess(workers, scene.holders, outputs, away)]
    if scene.job.train is not None:
        trainers = scene.there_or_any(outputs, central, evenly)
        stages.append(scene.train(trainers, outputs, "output", told))
    return Plan(policy="central-cached", stages=tuple(stages))


@Policy
def san(scene: Scene) -> Plan:
    """All work on the compute nodes, all data on a storage array: read from it in every stage and epoch, written to it.

    Loading the array is a copy of its own (class `staging`); a site whose data already lie on one does not pay for it.
    """
    central = _compute_nodes(scene, "san")
    cluster = scene.cluster
    arrays = tuple(sorted(node.name for node in cluster.array_nodes))
    if not arrays:
        raise PlacementError(
            f"san reads from a storage array, and none of the {len(cluster.nodes)} nodes of {cluster.name} that are up has the "
            "role `array`",
            "add a node with `role: array` (in a rack of its own, with the array's link) to the cluster config",
        )
    behind = "all storage is on the array"
    loading = scene.spread(scene.numbers(arrays), evenly)
    there = scene.at(loading)
    loaded = scene.stage("staging", "dataset", loading, scene.holders, there, "the array is loaded once")
    stages = [loaded]
    if scene.job.preprocess is not None:
        workers = scene.spread(central, capacity)
        stages.append(scene.stage("preprocess", "staged", workers, there, there, behind))
    if scene.job.train is not None:
        trainers = scene.spread(central, evenly)
        stages.append(scene.train(trainers, there, "staged" if scene.job.preprocess is None else "output", behind))
    return Plan(policy="san", stages=tuple(stages))


@Policy
def reduce_then_ship(scene: Scene) -> Plan:
    """Preprocess where the shards lie, write the small results to the compute nodes only, and train there."""
    job = scene.job
    if job.preprocess is None and job.pipeline is not None:
        raise PlacementError(
            f"reduce-then-ship ships what is made of the images, and the pipeline of {job.name} is cut at `raw`",
            "use central-staged to ship the images as they are, or give `pipeline.cut` another value",
        )
    if job.preprocess is None:
        raise PlacementError(
            f"reduce-then-ship ships what preprocessing makes of the images, and {job.name} has no `preprocess` stage",
            "add a `preprocess` stage, or use central-staged to ship the images as they are",
        )
    central = _compute_nodes(scene, "reduce-then-ship")
    workers = scene.where_it_lies
    receivers = scene.spread(central, evenly)
    there = scene.at(receivers)
    stages = [scene.preprocess(workers, scene.holders, there)]
    if job.train is not None:
        stages.append(scene.train(receivers, there, "output"))
    return Plan(policy="reduce-then-ship", stages=tuple(stages))


def _compute_nodes(scene: Scene, policy: str) -> Nodes:
    cluster = scene.cluster
    central = tuple(sorted(node.name for node in cluster.compute_nodes))
    if not central:
        raise PlacementError(
            f"{policy} works on compute nodes, and none of the {len(cluster.nodes)} nodes of {cluster.name} that are up "
            "has the role `compute`",
            "give a node `role: compute` in the cluster config, or use the policy data-local",
        )
    return scene.numbers(central)
