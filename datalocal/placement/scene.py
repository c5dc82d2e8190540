"""What every policy looks at, prepared once, and how it turns its choice of nodes into stages. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from datalocal.catalog.model import Catalog
from datalocal.errors import PlacementError
from datalocal.placement import gangs
from datalocal.placement.arrays import from_catalog
from datalocal.placement.balance import balance
from datalocal.placement.model import Assignment, StageKind, StagePlan
from datalocal.placement.replicas import Readers, Writers, live_holders
from datalocal.placement.rules import Rule
from datalocal.spec.cluster import Cluster, Node
from datalocal.spec.job import JobSpec

Holders: TypeAlias = Sequence[tuple[str, ...]]
"""Per shard, the nodes that hold it."""
Input: TypeAlias = Literal["dataset", "staged", "output"]


def capacity(node: Node) -> float:
    """How fast a node preprocesses, relative to others: its tasks at a time times the cores each uses."""
    return float(node.slots * node.cores)


def evenly(node: Node) -> float:
    """In a gang every node makes the same number of steps of the same size."""
    return 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Lists are per shard, in the catalog's order."""

    job: JobSpec
    catalog: Catalog
    cluster: Cluster
    shards: tuple[str, ...]
    rows: list[int]
    holders: list[tuple[str, ...]]

    @classmethod
    def of(cls, job: JobSpec, catalog: Catalog, cluster: Cluster) -> Scene:
        """Raises PlacementError when there are no shards, or one that no living node holds."""
        if not len(catalog):
            raise PlacementError(f"{catalog.dataset} has no shards", "ingest images first: `datalocal ingest`")
        return cls(
            job=job,
            catalog=catalog,
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

    def dealt(self) -> list[str]:
        """The storage nodes in turn, without a look at replicas."""
        nodes = sorted(node.name for node in self.cluster.storage_nodes)
        return [nodes[number % len(nodes)] for number in range(len(self.shards))]

    def preprocess(
        self, workers: Sequence[str], held: Holders, outputs: Holders, reason: str = "it holds no replica"
    ) -> StagePlan:
        """The preprocess stage of the job's data set."""
        return self.stage("preprocess", "dataset", workers, held, outputs, reason)

    def train_near(self, held: Holders, reads: Input) -> StagePlan:
        """The train stage: each shard on a node that holds it, else (with `train.gang`) on any of the gang; rows are even."""
        candidates = preferring_storage(held, self.cluster)
        choice = self.job.train.gang if self.job.train is not None else None
        if choice is not None:
            problem = from_catalog(self.catalog, self.cluster, held=held)
            gang = tuple(problem.node_names[number] for number in gangs.chosen(problem, choice))
            candidates = [tuple(name for name in nodes if name in gang) or gang for nodes in candidates]
        return self.train(self.balanced(candidates, evenly), held, reads, "no node of the gang holds a replica")

    def train(
        self, workers: Sequence[str], held: Holders, reads: Input, reason: str = "it holds no replica"
    ) -> StagePlan:
        """The train stage on the workers' shards."""
        return self.stage("train", reads, workers, held, None, reason)

    def stage(
        self,
        kind: StageKind,
        reads: Input,
        workers: Sequence[str],
        held: Holders,
        outputs: Holders | None = None,
        reason: str | Sequence[str] = "it holds no replica",
        rule: Rule | None = None,
    ) -> StagePlan:
        """Every shard on its worker; `reason` where that is not local, one for all or one per shard."""
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
                    reason="" if sources[0] == node else reason if isinstance(reason, str) else reason[number],
                )
            )
        return StagePlan(name=kind, kind=kind, input=reads, assignments=tuple(assignments), rule=rule)


def outputs_of(stage: StagePlan) -> list[tuple[str, ...]]:
    """Where the results of a stage will lie, per shard."""
    return [assignment.outputs for assignment in stage.assignments]


def preferring_storage(held: Holders, cluster: Cluster) -> list[tuple[str, ...]]:
    """Storage nodes work before compute nodes that also hold a replica."""
    storage = {node.name for node in cluster.storage_nodes}
    return [tuple(name for name in nodes if name in storage) or nodes for nodes in held]
