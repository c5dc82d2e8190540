"""Which living nodes hold what, from whom to read, and where copies of a result go. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from datalocal.catalog.model import Catalog
from datalocal.errors import PlacementError
from datalocal.placement.problem import Ints, Mask, Nodes
from datalocal.spec.cluster import Cluster

Node = TypeVar("Node", str, int)
"""A node's name, or its number among sorted names: both are in the same order."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Holders:
    """Per shard some nodes, in the order in which they are preferred: N shards, R entries."""

    names: tuple[str, ...]
    """What node numbers mean, sorted."""
    offsets: Ints
    """[N + 1] CSR offsets into `nodes`."""
    nodes: Nodes
    """[R] node numbers, distinct within a shard."""

    @classmethod
    def one_each(cls, names: tuple[str, ...], node: npt.NDArray[np.integer]) -> Holders:
        """Shard i on `node[i]` alone."""
        return cls(names=names, offsets=np.arange(len(node) + 1, dtype=np.int64), nodes=node.astype(np.int32))

    @classmethod
    def ordered(cls, names: tuple[str, ...], shard: Ints, node: npt.NDArray[np.integer], shards: int) -> Holders:
        """From entries in ascending order of `shard`."""
        counts = np.bincount(shard, minlength=shards)
        return cls(names=names, offsets=offsets_of(counts), nodes=node.astype(np.int32))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def counts(self) -> Ints:
        """[N] nodes of each shard."""
        return np.diff(self.offsets)

    @property
    def owner(self) -> Ints:
        """[R] the shard of each entry."""
        return np.repeat(np.arange(len(self), dtype=np.int64), self.counts)

    def lists(self) -> list[list[int]]:
        """Node numbers, shard by shard."""
        counts = self.counts
        if len(self) and (counts == counts[0]).all():  # a table is several times faster than slices
            table: list[list[int]] = self.nodes.reshape(len(self), int(counts[0])).tolist()
            return table
        flat = self.nodes.tolist()
        return [flat[start:end] for start, end in pairwise(self.offsets.tolist())]

    def has(self, node: npt.NDArray[np.integer]) -> Mask:
        """[N] whether `node` [N] is among the shard's nodes."""
        found = np.zeros(len(self), dtype=np.bool_)
        owner = self.owner
        found[owner[self.nodes == node[owner]]] = True
        return found

    def preferring(self, wanted: Mask, otherwise: Sequence[int] | None = None) -> Holders:
        """Of each shard's nodes those that are `wanted` [M]; where none is, `otherwise`, or (None) all of the shard's own."""
        kept = wanted[self.nodes]
        owner = self.owner
        counts = np.bincount(owner[kept], minlength=len(self))
        bare = counts == 0
        if not bare.any():
            return Holders(names=self.names, offsets=offsets_of(counts), nodes=self.nodes[kept])
        if otherwise is None:
            return self._only(kept | bare[owner])
        instead = np.flatnonzero(bare)
        shard = np.concatenate((owner[kept], np.repeat(instead, len(otherwise))))
        node = np.concatenate((self.nodes[kept], np.tile(np.array(otherwise, dtype=np.int32), len(instead))))
        order = np.argsort(shard, kind="stable")
        return Holders.ordered(self.names, shard[order], node[order], len(self))

    def sorted_by(self, key: npt.NDArray[np.integer]) -> Holders:
        """Each shard's nodes by `key` [R], 0 or more, those with the same one by number."""
        wide = max(len(self.names), 1)
        code = np.sort((self.owner * (int(key.max(initial=0)) + 1) + key) * wide + self.nodes)
        return Holders(names=self.names, offsets=self.offsets, nodes=(code % wide).astype(np.int32))

    def _only(self, kept: Mask) -> Holders:
        return Holders.ordered(self.names, self.owner[kept], self.nodes[kept], len(self))


def offsets_of(counts: npt.NDArray[np.integer]) -> Ints:
    """[N + 1] CSR offsets of rows with `counts` [N] entries."""
    return np.concatenate(([0], np.cumsum(counts))).astype(np.int64)


def either(here: Holders, there: Holders, which: Mask) -> Holders:
    """Of the shards in `which` [N] the nodes `here`, of the others those `there`."""
    shard = np.concatenate((here.owner[which[here.owner]], there.owner[~which[there.owner]]))
    node = np.concatenate((here.nodes[which[here.owner]], there.nodes[~which[there.owner]]))
    order = np.argsort(shard, kind="stable")
    return Holders.ordered(here.names, shard[order], node[order], len(here))


def kept_shards(shards: int, share: float) -> Mask:
    """[shards] those that a cache for a share of them keeps: the same ones always, evenly among all."""
    return np.diff((np.arange(shards + 1) * share).astype(np.int64)) > 0


def live_holders(catalog: Catalog, cluster: Cluster) -> Holders:
    """The nodes of `cluster` that hold each shard, by name. Raises PlacementError when a shard has none."""
    names = tuple(sorted(node.name for node in cluster.nodes))
    number = {name: place for place, name in enumerate(names)}
    known = np.array([number.get(name, -1) for name in catalog.nodes], dtype=np.int64)
    shard = np.repeat(np.arange(len(catalog), dtype=np.int64), np.diff(catalog.replica_offsets))
    node = known[catalog.replica_nodes]
    up = node >= 0  # others are known to the catalog and not up
    entries = shard[up] * max(len(names), 1) + node[up]
    if not (entries[1:] > entries[:-1]).all():
        entries = np.sort(entries)
        entries = entries[np.diff(entries, prepend=-1) > 0]
    shard, node = np.divmod(entries, max(len(names), 1))
    found = Holders.ordered(names, shard, node, len(catalog))
    lost = np.flatnonzero(found.counts == 0)
    if lost.size:
        raise no_replica(catalog.path(int(lost[0])), lost.size, len(catalog), len(names))
    return found


def no_replica(path: str, count: int, total: int, nodes: int) -> PlacementError:
    """The error for shards that nobody has."""
    return PlacementError(
        f"{path} has no replica on any of the {nodes} nodes that are up"
        + (f" ({count} of {total} shards have none)" if total > 1 else ""),
        "bring the nodes that hold it back (`datalocal cluster status`), or ingest the data set again",
    )


def nearest_first(held: Holders, reader: npt.NDArray[np.integer], rows: Ints, rack: npt.NDArray[np.integer]) -> Holders:
    """The holders of each shard in the order in which `reader` [N] asks them, as `Readers` does it one by one.

    `rows` [N] of each shard, `rack` [M] of each node.
    """
    first = reader.astype(np.int64)
    flat, ends = held.nodes.tolist(), held.offsets.tolist()
    readers = Readers(rack.tolist())
    away = np.flatnonzero(~held.has(reader))
    first[away] = [
        readers.first(node, flat[ends[shard] : ends[shard + 1]], count)
        for shard, node, count in zip(away.tolist(), reader[away].tolist(), rows[away].tolist(), strict=True)
    ]
    owner = held.owner
    step = np.where(held.nodes == first[owner], 0, 1 + (rack[held.nodes] != rack[reader][owner]))
    return held.sorted_by(step)


class Readers(Generic[Node]):
    """Orders sources by nearness, and spreads reads of equal nearness over their holders by rows. Deterministic."""

    def __init__(self, rack: Mapping[Node, object] | Sequence[object]) -> None:
        """`rack` of each node, by name or by number."""
        self._rack: Mapping[Node, object] = rack  # type: ignore[assignment]  # a list is a mapping from numbers
        self._read: dict[Node, int] = {}

    def first(self, reader: Node, holders: Sequence[Node], rows: int) -> Node:
        """The best of `holders`, of whom the reader is none: in its rack, then who had the least to send so far."""
        rack, racks, read = self._rack[reader], self._rack, self._read
        best, best_far, least = holders[0], True, 1 << 62
        for name in holders:  # a plain loop, as 1,000,000 shards come through here
            far, size = racks[name] != rack, read.get(name, 0)
            if (far, size) < (best_far, least) or ((far, size) == (best_far, least) and name < best):
                best, best_far, least = name, far, size
        read[best] = read.get(best, 0) + rows
        return best

    def order(self, reader: Node, holders: Sequence[Node], rows: int) -> tuple[Node, ...]:
        """The holders, best first: the reader itself or `first`, then those of its rack, then the others."""
        ordered: list[Node] = [reader if reader in holders else self.first(reader, holders, rows)]
        others: list[Node] = sorted(name for name in holders if name not in ordered)
        ordered += [name for name in others if self._rack[name] == self._rack[reader]]
        ordered += [name for name in others if self._rack[name] != self._rack[reader]]
        return tuple(ordered)


def beside(
    held: Holders,
    first: npt.NDArray[np.integer] | None,
    count: int | None,
    rows: Ints,
    rack: npt.NDArray[np.integer],
    candidates: Collection[int],
) -> Holders:
    """Where results go: to `first` [N] (None: nobody keeps one), then to holders of the input, then to any candidate.

    `count` copies, None: as many as the input has. `rows` [N], `rack` [M]. Who gets them where there is a choice is up to
    `Writers`, once the shards without a choice have been counted.
    """
    wanted = held.counts if count is None else np.full(len(held), count)
    forced = wanted == held.counts
    if first is not None:
        forced &= held.has(first)
    owner = held.owner
    plain = held.sorted_by(np.zeros_like(owner) if first is None else held.nodes != first[owner])
    if forced.all():
        return plain
    got = np.bincount(plain.nodes, weights=(rows * forced)[owner], minlength=len(held.names)).astype(np.int64)
    writers = Writers(rack.tolist(), candidates, dict(enumerate(got.tolist())))
    flat, ends = plain.nodes.tolist(), plain.offsets.tolist()
    free = np.flatnonzero(~forced)
    own = [None] * len(free) if first is None else first[free].tolist()
    chosen = [
        writers.choose(maker, flat[ends[shard] : ends[shard + 1]], many, size)
        for shard, maker, many, size in zip(free.tolist(), own, wanted[free].tolist(), rows[free].tolist(), strict=True)
    ]
    lengths = np.fromiter(map(len, chosen), dtype=np.int64, count=len(chosen))
    nodes = np.fromiter(chain.from_iterable(chosen), dtype=np.int32, count=int(lengths.sum()))
    picked = Holders.ordered(held.names, np.repeat(free, lengths), nodes, len(held))
    return either(picked, plain, ~forced)


class Writers(Generic[Node]):
    """Chooses where results go: holders of the input first, then other nodes by HDFS's default rule, evenly by rows."""

    def __init__(
        self,
        rack: Mapping[Node, object] | Sequence[object],
        candidates: Collection[Node],
        written: Mapping[Node, int] | None = None,
    ) -> None:
        """`rack` of each node, by name or by number; `written`: rows that nodes have got already."""
        self._rack: Mapping[Node, object] = rack  # type: ignore[assignment]  # a list is a mapping from numbers
        self._candidates: list[Node] = sorted(candidates)
        self._written: dict[Node, int] = dict(written or {})

    def choose(self, first: Node | None, preferred: Sequence[Node], count: int, rows: int) -> tuple[Node, ...]:
        """`count` distinct nodes (fewer when there are no more): `first`, then `preferred`, then any candidate.

        Among equals HDFS's rule decides: the second copy in another rack than the first, the third in the rack of the
        second, further ones where the rack has the fewest; then who got the least so far; then the name.
        """
        chosen: list[Node] = [] if first is None else [first]
        for pool in (preferred, self._candidates):
            if len(chosen) >= count:
                break
            left: list[Node] = sorted(name for name in pool if name not in chosen)
            if len(left) <= count - len(chosen):  # all of them, so there is nothing to choose
                chosen += left
                continue
            while len(chosen) < count:
                best = self._best(chosen, left)
                left.remove(best)
                chosen.append(best)
        written = self._written
        for name in chosen:
            written[name] = written.get(name, 0) + rows
        return tuple(chosen[:count])

    def _best(self, chosen: Sequence[Node], left: Sequence[Node]) -> Node:
        """The first of the best among `left`, which is sorted."""
        rack, written = self._rack, self._written
        taken = [rack[other] for other in chosen]
        second = taken[1] if len(taken) == 2 and taken[0] != taken[1] else None
        best, best_rule, least = left[0], 1 << 62, 0
        for name in left:  # a plain loop, as 1,000,000 shards come through here
            rule = rack[name] != second if second is not None else taken.count(rack[name])
            if rule <= best_rule:
                size = written.get(name, 0)
                if rule < best_rule or size < least:
                    best, best_rule, least = name, rule, size
        return best
