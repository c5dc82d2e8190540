"""The policies: pure functions (job, catalog, cluster) -> Plan. Data-local and the baselines it is measured against.

The order of nodes and shards in a cluster file or a listing never matters: everything is decided by names, rows and the
job's seed. `cluster` holds the nodes that are up; nobody else gets work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from datalocal.catalog.model import Catalog
from datalocal.errors import PlacementError
from datalocal.placement.balance import balance
from datalocal.placement.check import check
from datalocal.placement.model import Assignment, Plan, StageKind, StagePlan
from datalocal.placement.replicas import Readers, Writers, live_holders
from datalocal.spec.cluster import Cluster, Node
from datalocal.spec.job import JobSpec

Policy: TypeAlias = Callable[[JobSpec, Catalog, Cluster], Plan]
Holders: TypeAlias = Sequence[tuple[str, ...]]
"""Per shard, the nodes that hold it."""
Input: TypeAlias = Literal["dataset", "staged", "output"]

__all__ = [
    "Policy",
    "central_nas",
    "central_staged",
    "check",
    "data_local",
    "random",
    "reduce_then_ship",
]


def data_local(job: JobSpec, catalog: Catalog, cluster: Cluster) -> Plan:
    """Every shard where one of its replicas lies, balanced; results stay next to the input's replicas."""
    scene = _Scene.of(job, catalog, cluster)
    held = scene.holders
    stages: list[StagePlan] = []
    if job.preprocess is not None:
        workers = scene.balanced(_preferring_storage(held, cluster), capacity)
        preprocess = scene.preprocess(workers, held, scene.beside_the_input(workers))
        stages.append(preprocess)
        held = _outputs(preprocess)
    if job.train is not None:
        trainers = scene.balanced(_preferring_storage(held, cluster), evenly)
        stages.append(scene.train(trainers, held, "output" if stages else "dataset"))
    return Plan(policy="data-local", stages=tuple(stages))


def random(job: JobSpec, catalog: Catalog, cluster: Cluster) -> Plan:
    """Every shard on a storage node drawn at random; no storage node stays empty while there are enough shards."""
    scene = _Scene.of(job, catalog, cluster)
    drawn = "drawn at random; it holds no replica"
    held = scene.holders
    stages: list[StagePlan] = []
    if job.preprocess is not None:
        workers = scene.drawn(stream=0)
        preprocess = scene.preprocess(workers, held, scene.beside_the_input(workers), drawn)
        stages.append(preprocess)
        held = _outputs(preprocess)
    if job.train is not None:
        stages.append(scene.train(scene.drawn(stream=1), held, "output" if stages else "dataset", drawn))
    return Plan(policy="random", stages=tuple(stages))


def central_nas(job: JobSpec, catalog: Catalog, cluster: Cluster) -> Plan:
    """All work on the compute nodes; the storage nodes are their network disk, read again in every epoch."""
    scene = _Scene.of(job, catalog, cluster)
    central = _compute_nodes("central-nas", cluster)
    away = "no replica on a compute node"
    held = scene.holders
    stages: list[StagePlan] = []
    if job.preprocess is not None:
        workers = scene.balanced(_there_or_any(held, central), capacity)
        preprocess = scene.preprocess(workers, held, scene.beside_the_input([None] * len(catalog)), away)
        stages.append(preprocess)
        held = _outputs(preprocess)
    if job.train is not None:
        trainers = scene.balanced(_there_or_any(held, central), evenly)
        stages.append(scene.train(trainers, held, "output" if stages else "dataset", away))
    return Plan(policy="central-nas", stages=tuple(stages))


def central_staged(job: JobSpec, catalog: Catalog, cluster: Cluster) -> Plan:
    """Every shard is copied once to a compute node's disk; all work, and all results, are there."""
    scene = _Scene.of(job, catalog, cluster)
    central = _compute_nodes("central-staged", cluster)
    workers = scene.balanced([central] * len(catalog), capacity if job.preprocess is not None else evenly)
    there = [(worker,) for worker in workers]
    staging = scene.stage(
        "staging", "dataset", workers, scene.holders, there, "no replica on a compute node: it is copied there once"
    )
    stages = [staging]
    if job.preprocess is not None:
        stages.append(scene.stage("preprocess", "staged", workers, there, there))
    if job.train is not None:
        stages.append(scene.stage("train", "output" if job.preprocess is not None else "staged", workers, there))
    return Plan(policy="central-staged", stages=tuple(stages))


def reduce_then_ship(job: JobSpec, catalog: Catalog, cluster: Cluster) -> Plan:
    """Preprocess where the shards lie, write the small results to the compute nodes only, and train there."""
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
    scene = _Scene.of(job, catalog, cluster)
    central = _compute_nodes("reduce-then-ship", cluster)
    workers = scene.balanced(_preferring_storage(scene.holders, cluster), capacity)
    receivers = scene.balanced([central] * len(catalog), evenly)
    there = [(receiver,) for receiver in receivers]
    stages = [scene.preprocess(workers, scene.holders, there)]
    if job.train is not None:
        stages.append(scene.train(receivers, there, "output"))
    return Plan(policy="reduce-then-ship", stages=tuple(stages))


def capacity(node: Node) -> float:
    """How fast a node preprocesses, relative to others: its tasks at a time times the cores each uses."""
    return float(node.slots * node.cores)


def evenly(node: Node) -> float:
    """In a gang every node makes the same number of steps of the same size."""
    return 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scene:
    """What every policy looks at, prepared once. Lists are per shard, in the catalog's order."""

    job: JobSpec
    cluster: Cluster
    shards: tuple[str, ...]
    rows: list[int]
    holders: list[tuple[str, ...]]

    @classmethod
    def of(cls, job: JobSpec, catalog: Catalog, cluster: Cluster) -> _Scene:
        if not len(catalog):
            raise PlacementError(f"{catalog.dataset} has no shards", "ingest images first: `datalocal ingest`")
        return cls(
            job=job,
            cluster=cluster,
            shards=catalog.shards,
            rows=catalog.shard_rows.tolist(),
            holders=live_holders(catalog, cluster),
        )

    def balanced(self, candidates: Holders, speed: Callable[[Node], float]) -> list[str]:
        """One of each shard's candidates, so that the busiest is done as early as possible."""
        names = sorted({name for nodes in candidates for name in nodes})
        number = {name: place for place, name in enumerate(names)}
        nodes = {node.name: node for node in self.cluster.nodes}
        speeds = [speed(nodes[name]) for name in names]
        chosen = balance(self.rows, [[number[name] for name in held] for held in candidates], speeds)
        return [names[place] for place in chosen]

    def drawn(self, stream: int) -> list[str]:
        """A storage node for each shard, drawn from the job's seed; each node once before any is drawn freely."""
        nodes = sorted(node.name for node in self.cluster.storage_nodes)
        draw = np.random.default_rng([self.job.seed, stream])
        shuffled = draw.permutation(len(self.shards)).tolist()
        free = draw.integers(len(nodes), size=len(self.shards)).tolist()
        once = draw.permutation(len(nodes)).tolist()
        picked = [0] * len(self.shards)
        for turn, shard in enumerate(shuffled):
            picked[shard] = once[turn] if turn < len(once) else free[turn]
        return [nodes[place] for place in picked]

    def beside_the_input(self, first: Sequence[str | None]) -> list[tuple[str, ...]]:
        """Where results go: the node that makes them (if it is to keep one), then the holders of the input."""
        wanted = self.job.preprocess.output_replication if self.job.preprocess is not None else None
        storage = [node.name for node in self.cluster.storage_nodes]
        if wanted is not None and wanted > len(storage):
            raise PlacementError(
                f"`output_replication: {wanted}` needs as many storage nodes, {len(storage)} are up",
                "ask for fewer copies, or bring up more storage nodes",
            )
        writers = Writers(self.cluster, storage)
        return [
            writers.choose(node, held, wanted or len(held), rows)
            for node, held, rows in zip(first, self.holders, self.rows, strict=True)
        ]

    def preprocess(
        self, workers: Sequence[str], held: Holders, outputs: Holders, reason: str = "it holds no replica"
    ) -> StagePlan:
        return self.stage("preprocess", "dataset", workers, held, outputs, reason)

    def train(
        self, workers: Sequence[str], held: Holders, reads: Input, reason: str = "it holds no replica"
    ) -> StagePlan:
        return self.stage("train", reads, workers, held, None, reason)

    def stage(
        self,
        kind: StageKind,
        reads: Input,
        workers: Sequence[str],
        held: Holders,
        outputs: Holders | None = None,
        reason: str = "it holds no replica",
    ) -> StagePlan:
        readers = Readers(self.cluster)
        assignments = []
        for number, (shard, node) in enumerate(zip(self.shards, workers, strict=True)):
            sources = readers.order(node, held[number], self.rows[number])
            assignments.append(
                Assignment(
                    shard=shard,
                    node=node,
                    sources=sources,
                    outputs=() if outputs is None else outputs[number],
                    reason="" if sources[0] == node else reason,
                )
            )
        return StagePlan(name=kind, kind=kind, input=reads, assignments=tuple(assignments))


def _outputs(stage: StagePlan) -> list[tuple[str, ...]]:
    return [assignment.outputs for assignment in stage.assignments]


def _there_or_any(held: Holders, nodes: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Those of `nodes` that hold the shard, or all of them."""
    return [tuple(name for name in holders if name in nodes) or nodes for holders in held]


def _preferring_storage(held: Holders, cluster: Cluster) -> list[tuple[str, ...]]:
    """Storage nodes work before compute nodes that also hold a replica."""
    storage = {node.name for node in cluster.storage_nodes}
    return [tuple(name for name in nodes if name in storage) or nodes for nodes in held]


def _compute_nodes(policy: str, cluster: Cluster) -> tuple[str, ...]:
    central = tuple(sorted(node.name for node in cluster.compute_nodes))
    if not central:
        raise PlacementError(
            f"{policy} works on compute nodes, and none of the {len(cluster.nodes)} nodes of {cluster.name} that are up "
            "has the role `compute`",
            "give a node `role: compute` in the cluster config, or use the policy data-local",
        )
    return central
