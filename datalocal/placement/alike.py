"""Shards with the same holders, moved together: where there are few kinds of them, a maximum flow over kinds is quick. Pure."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_flow

from datalocal.placement.csr import columns, entries
from datalocal.placement.problem import Ints, Nodes

SHARDS_PER_KIND = 32
"""From so many on it pays to look for kinds."""
_SAMPLE = 4096
_NOBODY = -2  # neither a node nor NOWHERE


def runs(offsets: Ints, holders: Nodes, nodes: int, weight: Ints | None = None) -> tuple[Ints, Ints]:
    """Shards sorted by holders (and `weight` [N]): members [N], and [G + 1] where each run of equal ones starts.

    `holders` stand in the same order for equal ones.
    """
    key = _hashes(offsets, holders, nodes)
    if weight is not None:
        key += weight * 0x9E3779B97F4A7C1
    members = np.argsort(key, kind="stable")
    table = _table(offsets, holders)[members]
    same = (table[1:] == table[:-1]).all(axis=1)
    if weight is not None:
        same &= np.diff(weight[members]) == 0
    return members, np.append(np.flatnonzero(np.append(True, ~same)[: len(key)]), len(key))


def _table(offsets: Ints, holders: Nodes) -> npt.NDArray[np.int32]:
    """[N, H] the holders of each shard, _NOBODY where it has fewer."""
    counts = np.diff(offsets)
    most = int(counts.max(initial=0))
    if (counts == most).all():
        return holders.reshape(len(counts), most)
    table = np.full((len(counts), most), _NOBODY, dtype=np.int32)
    table[np.arange(most) < counts[:, None]] = holders
    return table


def _hashes(offsets: Ints, holders: Nodes, nodes: int) -> Ints:
    """[N] a sum of random numbers of each shard's holders; it wraps around, which is as good."""
    draw = np.random.default_rng(0).integers(1, 2**62, size=nodes)
    summed = np.concatenate(([0], np.cumsum(draw[holders])))
    return np.asarray(summed[offsets[1:]] - summed[offsets[:-1]])


def _may_be_few(offsets: Ints, holders: Nodes, nodes: int) -> bool:
    """Whether a sample has as many pairs of equal shards as SHARDS_PER_KIND would make."""
    shards = len(offsets) - 1
    sample = np.arange(shards)
    if shards > 4 * _SAMPLE:
        sample = np.unique(np.random.default_rng(0).integers(shards, size=_SAMPLE))
    where, ends = entries(offsets, sample)
    different = len(np.unique(_hashes(np.concatenate(([0], ends)), holders[where], nodes)))
    pairs = len(sample) ** 2 * SHARDS_PER_KIND / 2 / max(shards, 1)
    return len(sample) - different >= min(pairs, len(sample) * (1 - 1 / SHARDS_PER_KIND))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Alike:
    """N shards of K kinds, each with at most H holders."""

    kind: npt.NDArray[np.int32]
    """[N]"""
    holders: npt.NDArray[np.int32]
    """[K, H] nodes, below 0 where a kind has fewer."""

    @classmethod
    def of(cls, offsets: Ints, holders: Nodes, nodes: int) -> Alike | None:
        """From who holds each shard; None where there are more than one kind for SHARDS_PER_KIND shards."""
        if not _may_be_few(offsets, holders, nodes):
            return None
        members, starts = runs(offsets, holders, nodes)
        kinds = len(starts) - 1
        if kinds * SHARDS_PER_KIND > len(members):
            return None
        table = _table(offsets, holders)[members[starts[:-1]]]
        order = np.lexsort(table.T[::-1])
        number = np.empty(kinds, dtype=np.int32)
        number[order] = np.arange(kinds)
        kind = np.empty(len(members), dtype=np.int32)
        kind[members] = np.repeat(number, np.diff(starts))
        return cls(kind=kind, holders=table[order])

    def settle(self, place: Nodes, load: Ints, capacity: Ints, region: Ints | None) -> None:
        """Move shards, in place, so that as little as can be is above `capacity` [M]; arguments as of `waves.settle`."""
        kinds, most = self.holders.shape
        node = self.holders.ravel()
        # An entry is a kind and one of its holders; shards that are nowhere have the last one.
        seat = (self.holders.take(self.kind, axis=0) == place[:, None]).argmax(axis=1)
        entry = np.where(place >= 0, self.kind * most + seat, len(node)).astype(np.int32)
        offsets, members = columns(np.arange(len(place) + 1), entry, len(node) + 1)
        count = np.diff(offsets)[:-1]
        group = np.repeat(np.arange(kinds), most)
        if region is not None:  # shards of a kind can be exchanged for each other only in their region
            group = np.unique(group * (int(region.max()) + 2) + region[node] + 1, return_inverse=True)[1]
        goal = _settled(group, node, count, load - capacity)
        by_group = np.argsort(group, kind="stable")
        # Shards leave what has too many of them, for what has too few.
        leaves = np.flatnonzero(np.arange(offsets[-2]) - np.repeat(offsets[:-2], count) >= np.repeat(goal, count))
        of = np.repeat(group, count)[leaves]
        moved = members[leaves[np.argsort(of, kind="stable")]]
        place[moved] = np.repeat(node[by_group], np.maximum(goal - count, 0)[by_group])
        load[:] = np.bincount(place[place >= 0], minlength=len(load))


def _settled(group: Ints, node: Nodes, count: Ints, over: Ints) -> Ints:
    """[E] `count` after as much as can be has gone from nodes with too many (`over` [M] above 0) to those with room."""
    arcs = np.flatnonzero((node >= 0) & (_sums(group, count)[group] > 0))
    groups, nodes = int(group.max()) + 1, len(over)
    source, sink = groups + nodes, groups + nodes + 1
    high, low = np.flatnonzero(over > 0), np.flatnonzero(over < 0)
    leaves = arcs[count[arcs] > 0]
    most = int(over[high].sum())
    tail = np.concatenate((np.full(len(high), source), groups + node[leaves], group[arcs], groups + low))
    head = np.concatenate((groups + high, group[leaves], groups + node[arcs], np.full(len(low), sink)))
    amount = np.concatenate((over[high], count[leaves], np.full(len(arcs), most), np.minimum(-over[low], most)))
    graph = csr_array((amount.astype(np.int32), (tail, head)), shape=(sink + 1, sink + 1))
    flow = maximum_flow(graph, source, sink).flow
    found = count.copy()
    found[arcs] += flow[group[arcs], groups + node[arcs]]
    return found


def _sums(group: Ints, amount: Ints) -> Ints:
    return np.bincount(group, weights=amount).astype(np.int64)
