"""Which living nodes hold what, from whom to read, and where copies of a result go. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeAlias

import numpy as np
import numpy.typing as npt

from datalocal.catalog.model import Catalog
from datalocal.errors import PlacementError
from datalocal.placement.csr import rows_of
from datalocal.placement.problem import Ints, Mask, Nodes
from datalocal.placement.writers import Node, Writers
from datalocal.spec.cluster import Cluster

Entries: TypeAlias = tuple[npt.NDArray[np.integer], npt.NDArray[np.integer]]
"""Shard and node of each."""


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
        return rows_of(self.offsets, self.nodes)

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
            return self.only(kept | bare[owner])
        instead = np.flatnonzero(bare)
        anyone = np.repeat(instead, len(otherwise)), np.tile(np.array(otherwise, dtype=np.int32), len(instead))
        return _merged(self.names, [(owner[kept], self.nodes[kept]), anyone], len(self))

    def sorted_by(self, key: npt.NDArray[np.integer]) -> Holders:
        """Each shard's nodes by `key` [R], 0 or more, those with the same one by number."""
        wide = max(len(self.names), 1)
        code = np.sort((self.owner * (int(key.max(initial=0)) + 1) + key) * wide + self.nodes)
        return Holders(names=self.names, offsets=self.offsets, nodes=(code % wide).astype(np.int32))

    def sorted_by_number(self) -> Holders:
        """Each shard's nodes by number."""
        return self.sorted_by(np.zeros(len(self.nodes), dtype=np.int64))

    def only(self, kept: Mask) -> Holders:
        """The entries `kept` [R]."""
        return Holders.ordered(self.names, self.owner[kept], self.nodes[kept], len(self))

    def picked(self, shards: Mask) -> Entries:
        """The entries of `shards` [N]."""
        kept = shards[self.owner]
        return self.owner[kept], self.nodes[kept]


def offsets_of(counts: npt.NDArray[np.integer]) -> Ints:
    """[N + 1] CSR offsets of rows with `counts` [N] entries."""
    return np.concatenate(([0], np.cumsum(counts))).astype(np.int64)


def either(here: Holders, there: Holders, which: Mask) -> Holders:
    """Of the shards in `which` [N] the nodes `here`, of the others those `there`."""
    return _merged(here.names, [here.picked(which), there.picked(~which)], len(here))


def _merged(names: tuple[str, ...], parts: Sequence[Entries], shards: int) -> Holders:
    """Entries (shard, node) in any order; those of a shard stay in theirs."""
    shard, node = (np.concatenate(column) for column in zip(*parts, strict=True))
    order = np.argsort(shard, kind="stable")
    return Holders.ordered(names, shard[order], node[order], shards)


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
    own = held.has(reader)
    owner = held.owner
    near = rack[held.nodes] == rack[reader][owner]
    lonely = np.bincount(owner[near], minlength=len(held)) == 0
    asked = ~own[owner] & (near | lonely[owner])
    pools = Holders.ordered(held.names, owner[asked], held.nodes[asked], len(held)).sorted_by_number()
    first[~own] = _in_turn(pools, np.flatnonzero(~own), rows, [0] * len(held.names))
    return held.sorted_by(np.where(held.nodes == first[owner], 0, 1 + ~near))


def _in_turn(pools: Holders, shards: Ints, rows: Ints, sent: list[int]) -> list[int]:
    """Of each of `shards`, one after the other, the node of its pool with the fewest `rows` [N] so far: `sent` [M], updated."""
    flat, chosen = pools.nodes.tolist(), []
    starts, ends = pools.offsets[shards].tolist(), pools.offsets[shards + 1].tolist()
    for start, end, size in zip(starts, ends, rows[shards].tolist(), strict=True):  # 1,000,000 shards come through here
        best = flat[start]
        least = sent[best]
        for node in flat[start + 1 : end]:
            if sent[node] < least:
                best, least = node, sent[node]
        sent[best] = least + size
        chosen.append(best)
    return chosen


class Readers(Generic[Node]):
    """Orders sources by nearness, and spreads reads of equal nearness over their holders by rows. Deterministic."""

    def __init__(self, rack: Mapping[Node, object] | Sequence[object]) -> None:
        """`rack` of each node, by name or by number."""
        self._rack: Mapping[Node, object] = rack  # type: ignore[assignment]  # a list is a mapping from numbers
        self._read: dict[Node, int] = {}

    def first(self, reader: Node, holders: Sequence[Node], rows: int) -> Node:
        """The best of `holders`, of whom the reader is none: in its rack, then who had the least to send so far."""
        rack, read = self._rack, self._read
        best = min(holders, key=lambda name: (rack[name] != rack[reader], read.get(name, 0), name))
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

    `count` copies, None: as many as the input has. `rows` [N], `rack` [M]. Where there is a choice, HDFS's rule decides as in
    `Writers`, once the shards without a choice have been counted: for all second copies, then for all third ones, and so on.
    """
    wanted = held.counts if count is None else np.full(len(held), count)
    forced = wanted == held.counts
    if first is not None:
        forced &= held.has(first)
    owner = held.owner
    plain = held.sorted_by_number() if first is None else held.sorted_by(held.nodes != first[owner])
    if forced.all():
        return plain
    got = np.bincount(plain.nodes, weights=(rows * forced)[owner], minlength=len(held.names)).astype(np.int64)
    seats = wanted if first is None else wanted - 1
    others = plain if first is None else plain.only(plain.nodes != first[owner])
    few = np.flatnonzero(~forced & (seats < others.counts))
    parts: list[Entries] = [plain.picked(forced)]
    if first is not None:
        parts.append((few, first[few]))
        got += np.bincount(first[few], weights=rows[few], minlength=len(got)).astype(np.int64)
    written = got.tolist()
    parts += _seated(others, few, seats, first, rows, rack, written)
    writers = Writers(rack.tolist(), candidates, dict(enumerate(written)))
    flat, ends = plain.nodes.tolist(), plain.offsets.tolist()
    for shard in np.flatnonzero(~forced & (seats >= others.counts)).tolist():
        maker = None if first is None else int(first[shard])
        chosen = writers.choose(maker, flat[ends[shard] : ends[shard + 1]], int(wanted[shard]), int(rows[shard]))
        parts.append((np.full(len(chosen), shard), np.array(chosen)))
    return _merged(held.names, parts, len(held))


def _seated(
    others: Holders,
    few: Ints,
    seats: Ints,
    first: npt.NDArray[np.integer] | None,
    rows: Ints,
    rack: npt.NDArray[np.integer],
    written: list[int],
) -> list[Entries]:
    """Seat by seat, who gets the copies of shards `few`, of which `others` holds more than `seats` [N]; `written` is updated."""
    mask = np.zeros(len(others), dtype=np.bool_)
    mask[few] = True
    taken = [] if first is None else [rack[first]]
    shard, node = others.picked(mask)
    found: list[Entries] = []
    for seat in range(int(seats[few].max(initial=0))):
        open_ = seats[shard] > seat
        shard, node = shard[open_], node[open_]
        rule = np.zeros(len(shard), dtype=np.int64)
        for before in taken:
            rule += before[shard] == rack[node]
        if len(taken) == 2:
            apart = (taken[0] != taken[1])[shard]
            rule[apart] = (taken[1][shard] != rack[node])[apart]
        starts = np.flatnonzero(np.diff(shard, prepend=-1))
        good = rule == np.repeat(np.minimum.reduceat(rule, starts), np.diff(np.append(starts, len(shard))))
        asked = shard[starts].astype(np.int64)
        pools = Holders.ordered(others.names, shard[good], node[good], len(others))
        chosen = np.zeros(len(others), dtype=np.int32)
        chosen[asked] = _in_turn(pools, asked, rows, written)
        found.append((asked, chosen[asked]))
        taken.append(rack[chosen])
        left = node != chosen[shard]
        shard, node = shard[left], node[left]
    return found
