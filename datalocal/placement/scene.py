"""What every policy looks at, prepared once, and how it turns its choice of nodes into stages. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from datalocal.catalog.model import Catalog
from datalocal.errors import PlacementError
from datalocal.placement import gangs
from datalocal.placement.arrays import from_catalog
from datalocal.placement.balance import MANY, balance, balance_many, deal
from datalocal.placement.model import Assignments, StageKind, StagePlan
from datalocal.placement.problem import Ints, Mask, Nodes, Problem
from datalocal.placement.replicas import Holders, beside, live_holders, nearest_first
from datalocal.placement.rules import Rule
from datalocal.spec.cluster import Cluster, Node
from datalocal.spec.job import JobSpec

Input: TypeAlias = Literal["dataset", "staged", "cached", "output"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reasons:
    """Why shards are not worked on where they lie, one per shard."""

    code: npt.NDArray[np.integer]
    """[N] number into `texts`; it counts only where the shard is not local."""
    texts: tuple[str, ...]


def capacity(node: Node) -> float:
    """How fast a node preprocesses, relative to others: its tasks at a time times the cores each uses."""
    return float(node.slots * node.cores)


def evenly(node: Node) -> float:
    """In a gang every node makes the same number of steps of the same size."""
    return 1.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """Shapes: N shards in the catalog's order, M nodes that are up, in order of their names; node numbers count from there."""

    job: JobSpec
    catalog: Catalog
    cluster: Cluster
    nodes: tuple[Node, ...]
    """[M]"""
    rack: Nodes
    """[M] rack number."""
    holders: Holders
    """Who holds the data set."""

    @classmethod
    def of(cls, job: JobSpec, catalog: Catalog, cluster: Cluster) -> Scene:
        """Raises PlacementError when there are no shards, or one that no living node holds."""
        if not len(catalog):
            raise PlacementError(f"{catalog.dataset} has no shards", "ingest images first: `datalocal ingest`")
        nodes = tuple(sorted(cluster.nodes, key=lambda node: node.name))
        racks = {name: place for place, name in enumerate(sorted({node.rack for node in nodes}))}
        return cls(
            job=job,
            catalog=catalog,
            cluster=cluster,
            nodes=nodes,
            rack=np.array([racks[node.rack] for node in nodes], dtype=np.int32),
            holders=live_holders(catalog, cluster),
        )

    @property
    def names(self) -> tuple[str, ...]:
        """[M] of the nodes."""
        return self.holders.names

    @property
    def rows(self) -> Ints:
        """[N] of each shard."""
        return self.catalog.shard_rows

    @cached_property
    def problem(self) -> Problem:
        """The data set on the storage nodes, as arrays."""
        return from_catalog(self.catalog, self.cluster)

    @cached_property
    def where_it_lies(self) -> Nodes:
        """[N] a holder that preprocesses each shard, storage nodes first, so that the busiest is done as early as possible."""
        return self.balanced(self.preferring_storage(self.holders), capacity)

    def numbers(self, names: Sequence[str]) -> Nodes:
        """The numbers of these nodes."""
        number = {name: place for place, name in enumerate(self.names)}
        return np.array([number[name] for name in names], dtype=np.int32)

    def among(self, nodes: npt.NDArray[np.integer]) -> Mask:
        """[M] which nodes are among `nodes`."""
        found = np.zeros(len(self.nodes), dtype=np.bool_)
        found[nodes] = True
        return found

    @property
    def storage(self) -> Nodes:
        """The numbers of the storage nodes."""
        return np.flatnonzero([node.role == "storage" for node in self.nodes]).astype(np.int32)

    def preferring_storage(self, held: Holders) -> Holders:
        """Storage nodes work before compute nodes that also hold a replica."""
        return held.preferring(self.among(self.storage))

    def balanced(self, candidates: Holders, speed: Callable[[Node], float]) -> Nodes:
        """One of each shard's candidates, so that the busiest is done as early as possible."""
        used = np.flatnonzero(self.among(candidates.nodes))
        place = np.zeros(len(self.nodes), dtype=np.int32)
        place[used] = np.arange(len(used))
        among = Holders(names=(), offsets=candidates.offsets, nodes=place[candidates.nodes])
        if len(self.catalog) > MANY:
            speeds = [speed(self.nodes[number]) for number in used.tolist()]
            return used[balance_many(self.rows, among.offsets, among.nodes, speeds)].astype(np.int32)
        return self._balanced(used, among.lists(), speed)

    def spread(self, nodes: npt.NDArray[np.integer], speed: Callable[[Node], float]) -> Nodes:
        """One of `nodes` for each shard, so that the busiest is done as early as possible."""
        if len(self.catalog) > MANY:
            return nodes[deal(self.rows, [speed(self.nodes[number]) for number in nodes.tolist()])].astype(np.int32)
        return self._balanced(nodes, [range(len(nodes))] * len(self.catalog), speed)

    def there_or_any(self, held: Holders, nodes: Nodes, speed: Callable[[Node], float]) -> Nodes:
        """One of those of `nodes` that hold the shard, or of all of them."""
        wanted = self.among(nodes)
        if not wanted[held.nodes].any():
            return self.spread(nodes, speed)
        return self.balanced(held.preferring(wanted, otherwise=nodes.tolist()), speed)

    def _balanced(
        self, nodes: npt.NDArray[np.integer], candidates: Sequence[Sequence[int]], speed: Callable[[Node], float]
    ) -> Nodes:
        chosen = balance(self.rows.tolist(), candidates, [speed(self.nodes[number]) for number in nodes.tolist()])
        return nodes[chosen].astype(np.int32)

    def drawn(self, stream: int) -> Nodes:
        """A storage node for each shard, drawn from the job's seed; each node once before any is drawn freely."""
        storage, shards = self.storage, len(self.catalog)
        draw = np.random.default_rng([self.job.seed, stream])
        shuffled = draw.permutation(shards)
        picked = draw.integers(len(storage), size=shards)
        once = draw.permutation(len(storage))[:shards]
        # Shard `shuffled[turn]` gets the node of that turn while there are nodes that have none.
        by_turn = picked.copy()
        by_turn[: len(once)] = once
        picked[shuffled] = by_turn
        return storage[picked]

    def beside_the_input(self, first: Nodes | None) -> Holders:
        """Where results go: the node that makes them (if it is to keep one), then the holders of the input."""
        wanted = self.job.preprocess.output_replication if self.job.preprocess is not None else None
        storage = self.storage
        if wanted is not None and wanted > len(storage):
            raise PlacementError(
                f"`output_replication: {wanted}` needs as many storage nodes, {len(storage)} are up",
                "ask for fewer copies, or bring up more storage nodes",
            )
        return beside(self.holders, first, wanted, self.rows, self.rack, storage.tolist())

    def at(self, workers: Nodes) -> Holders:
        """Every shard on its worker alone."""
        return Holders.one_each(self.names, workers)

    def dealt(self) -> Nodes:
        """The storage nodes in turn, without a look at replicas."""
        return self.storage[np.arange(len(self.catalog)) % len(self.storage)]

    def preprocess(
        self, workers: Nodes, held: Holders, outputs: Holders, reason: str | Reasons = "it holds no replica"
    ) -> StagePlan:
        """The preprocess stage of the job's data set."""
        return self.stage("preprocess", "dataset", workers, held, outputs, reason)

    def train_near(self, held: Holders, reads: Input) -> StagePlan:
        """The train stage: each shard on a node that holds it, else (with `train.gang`) on any of the gang; rows are even."""
        candidates = self.preferring_storage(held)
        choice = self.job.train.gang if self.job.train is not None else None
        if choice is not None:
            gang = gangs.chosen(from_catalog(self.catalog, self.cluster, held=held), choice)
            candidates = candidates.preferring(self.among(np.array(gang)), otherwise=[int(number) for number in gang])
        return self.train(self.balanced(candidates, evenly), held, reads, "no node of the gang holds a replica")

    def train(self, workers: Nodes, held: Holders, reads: Input, reason: str = "it holds no replica") -> StagePlan:
        """The train stage on the workers' shards."""
        return self.stage("train", reads, workers, held, None, reason)

    def stage(
        self,
        kind: StageKind,
        reads: Input,
        workers: Nodes,
        held: Holders,
        outputs: Holders | None = None,
        reason: str | Reasons = "it holds no replica",
        rule: Rule | None = None,
    ) -> StagePlan:
        """Every shard on its worker; `reason` where that is not local, one for all or one per shard."""
        sources = nearest_first(held, workers, self.rows, self.rack)
        none = np.zeros(len(self.catalog), dtype=np.int32)
        told = Reasons(code=none, texts=(reason,)) if isinstance(reason, str) else reason
        away = sources.nodes[sources.offsets[:-1]] != workers
        assignments = Assignments(
            shards=self.catalog.shards,
            names=self.names,
            node=workers,
            source_offsets=sources.offsets,
            sources=sources.nodes,
            output_offsets=np.zeros(len(none) + 1, dtype=np.int64) if outputs is None else outputs.offsets,
            outputs=none[:0] if outputs is None else outputs.nodes,
            reason=np.where(away, told.code + 1, 0).astype(np.int32),
            reasons=("", *told.texts),
        )
        return StagePlan(name=kind, kind=kind, input=reads, assignments=assignments, rule=rule)


def outputs_of(stage: StagePlan) -> Holders:
    """Where the results of a stage will lie."""
    made = stage.assignments
    return Holders(names=made.names, offsets=made.output_offsets, nodes=made.outputs)
