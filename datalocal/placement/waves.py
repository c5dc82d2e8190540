"""Moving shards between the nodes that hold them until no node has more than its capacity: a maximum flow, in waves. Pure.

The flow shard -> holder -> sink lives on M nodes, not on N shards: an arc a -> b is a shard that is placed on a and also held
by b. Every shard starts on some holder, so capacities may be exceeded (a preflow); each wave labels nodes with their exact
distance to spare capacity and pushes excess downhill, farthest first (Goldberg and Tarjan, J. ACM 35, 1988, with global
relabelling before each wave). What cannot reach spare capacity stays where it is: those nodes are a minimum cut.
A wave is a few passes over numpy arrays, so 1,000,000 shards cost tenths of a second. Where much is read, it is by `take`,
which does the same as an index in brackets in a half to a quarter of the time.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from datalocal.placement.alike import Alike
from datalocal.placement.csr import columns, entries, spans
from datalocal.placement.problem import Floats, Ints, Mask, Nodes

FAR = np.iinfo(np.int32).max
SAME = 1e-12  # levels that are nearer to each other than this are the same but for rounding
BLOCK = 1 << 16
"""About so many replicas are looked at in one go: what a pass writes down on its way then stays in the cache of a core."""
MANY_MOVES = 8
"""Excess that has further to go makes many waves."""
NOWHERE = -1  # the last entry of per-node arrays that have room for it


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rows:
    """Who holds each of N shards: R replicas."""

    offsets: Ints
    """[N + 1] into `holders`."""
    holders: Nodes
    """[R] nodes of each shard."""
    each: int | None
    """Replicas of every shard; None where shards differ in that, or have none."""

    @classmethod
    def by_shard(cls, offsets: Ints, holders: Nodes) -> Rows:
        """See whether all shards have equally many."""
        each = len(holders) // max(len(offsets) - 1, 1)
        same = np.array_equal(offsets, np.arange(len(offsets)) * each)
        return cls(offsets=offsets, holders=holders, each=each if each and same else None)

    @property
    def shards(self) -> int:
        """N."""
        return len(self.offsets) - 1

    def row(self, shard: int) -> Nodes:
        """The holders of one shard."""
        return self.holders[self.offsets[shard] : self.offsets[shard + 1]]

    def holders_of(self, shards: npt.NDArray[np.integer]) -> tuple[Nodes, Ints]:
        """The holders of each of `shards`, one after the other, and for each of them the position in `shards`."""
        if self.each is not None:
            table = self.holders.reshape(-1, self.each)
            return table.take(shards, axis=0).ravel(), np.repeat(np.arange(len(shards)), self.each)
        where, which = spans(self.offsets, shards)
        return self.holders.take(where), which

    def permuted(self, order: npt.NDArray[np.integer]) -> tuple[Ints, Nodes]:
        """Offsets and holders when shard `order[i]` is called i."""
        if self.each is not None:
            return self.offsets, self.holders.reshape(-1, self.each).take(order, axis=0).ravel()
        where, ends = entries(self.offsets, order)
        return np.concatenate(([0], ends)), self.holders.take(where)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Index(Rows):
    """Who holds what, in both directions: N shards, M nodes, R replicas."""

    node_offsets: Ints
    """[M + 1] into `held`."""
    held: npt.NDArray[np.int32]
    """[R] shards of each node."""

    @classmethod
    def of(cls, offsets: Ints, holders: Nodes, nodes: int) -> Index:
        """Build it from the shards' side."""
        rows = Rows.by_shard(offsets, holders)
        node_offsets, held = columns(offsets, holders, nodes)
        return cls(offsets=offsets, holders=holders, each=rows.each, node_offsets=node_offsets, held=held)

    @property
    def nodes(self) -> int:
        """M."""
        return len(self.node_offsets) - 1

    def column(self, node: int) -> npt.NDArray[np.int32]:
        """The shards that one node holds."""
        return self.held[self.node_offsets[node] : self.node_offsets[node + 1]]

    def shards_on(self, nodes: Ints) -> tuple[npt.NDArray[np.int32], Ints]:
        """The shards held by each of `nodes`, one after the other, and for each of them the position in `nodes`."""
        where, which = spans(self.node_offsets, nodes)
        return self.held[where], which

    def placed_on(self, place: Nodes, nodes: Ints) -> tuple[npt.NDArray[np.int32], Ints]:
        """The shards that `place` [N] has on each of `nodes`, and for each of them the position in `nodes`."""
        where, ends = entries(self.node_offsets, nodes)
        shards = self.held.take(where)
        here = np.flatnonzero(place.take(shards) == np.repeat(nodes, np.diff(ends, prepend=0)))
        return shards[here], np.searchsorted(ends, here, side="right")

    def blocks(self, nodes: Ints) -> list[Ints]:
        """`nodes` in parts that hold about BLOCK replicas each."""
        if nodes.size * len(self.held) <= BLOCK // 4 * self.nodes:
            return [nodes]
        ends = np.cumsum(self.node_offsets[nodes + 1] - self.node_offsets[nodes])
        return np.split(nodes, np.flatnonzero(np.diff(ends // BLOCK)) + 1)


def by_place(place: Nodes, nodes: int) -> npt.NDArray[np.int32]:
    """[N] shards in the order of the nodes that they are on; those that are NOWHERE come last."""
    offsets = np.arange(len(place) + 1)
    return columns(offsets, np.where(place == NOWHERE, nodes, place).astype(np.int32), nodes + 1)[1]


def spread(rows: Rows, weight: Floats, place: Nodes, load: Ints, shards: Ints, batches: int = 16) -> None:
    """Put each of `shards` on a holder, in place: batch by batch on the one with the least load for its `weight` [M].

    Only a good start: capacity is not looked at. A shard that nobody holds stays NOWHERE.
    """
    scarce = np.where(weight > 0, 1.0 / np.maximum(weight, 1e-300), np.inf)
    filled = shards[rows.offsets[shards + 1] > rows.offsets[shards]]
    for start in range(batches):
        batch = filled[start::batches]
        if not batch.size:
            continue
        holders, which = rows.holders_of(batch)
        key = ((load + 1) * scarce).take(holders)
        if rows.each is not None:
            best = np.arange(len(batch)) * rows.each + key.reshape(-1, rows.each).argmin(axis=1)
        else:
            starts = np.flatnonzero(np.diff(which, prepend=-1))
            best = np.flatnonzero(key == np.minimum.reduceat(key, starts)[which])
            best = best[np.flatnonzero(np.diff(which[best], prepend=-1))]
        place[batch] = holders[best]
        load += np.bincount(place[batch], minlength=len(load))


def settle(
    index: Index,
    place: Nodes,
    load: Ints,
    capacity: Ints,
    region: Ints | None = None,
    alike: Alike | None = None,
) -> Mask:
    """Move shards, in place, until excess remains only where it cannot leave; returns [M] whether a node is stuck so.

    `place` [N] and `load` [M] are changed. With `region` [M + 1] (the last for NOWHERE) shards stay in their region. Stuck nodes
    have no spare capacity and their shards have no holder (in the region) that is not stuck; all others keep to `capacity`.
    Excess that has far to go is moved by `alike` at one blow; but then shards may move that need not.
    """
    stuck = np.zeros(index.nodes, dtype=np.bool_)
    wave = 0
    while True:
        sources = np.flatnonzero((load > capacity) & ~stuck)
        if not sources.size:
            return stuck
        spare = (load < capacity) & ~stuck
        if region is not None:
            spare &= np.isin(region[:-1], region[sources])
        distance, everything = _distances(index, place, spare, sources, region)
        reached = distance[sources]
        moves = int(reached[reached < FAR].max(initial=0))
        if alike is not None and moves > MANY_MOVES:
            alike.settle(place, load, capacity, region)
            alike = None
            continue
        if everything:
            lost = distance[:-1] == FAR
            stuck |= lost if region is None else lost & np.isin(region[:-1], region[sources])
        for level in range(moves, 0, -1):
            _push(index, place, load, capacity, region, distance, level, wave)
        wave += 1


def _distances(
    index: Index, place: Nodes, spare: Mask, sources: Ints, region: Ints | None
) -> tuple[npt.NDArray[np.int32], bool]:
    """[M + 1] moves from each node to spare capacity, FAR where there is no way; whether all of them are known.

    The search ends when every source has its distance. NOWHERE has the distance -1: nothing is moved from there.
    """
    distance = np.full(index.nodes + 1, FAR, dtype=np.int32)
    distance[NOWHERE] = -1
    frontier = np.flatnonzero(spare)
    distance[frontier] = 0
    level = 0
    missing = sources
    while frontier.size:
        missing = missing[distance[missing] == FAR]
        if not missing.size:
            return distance, False
        level += 1
        new = distance == FAR
        for some in index.blocks(frontier):
            where, ends = entries(index.node_offsets, some)
            before = place.take(index.held.take(where))
            far = np.flatnonzero(new.take(before))
            before = before[far]
            if region is not None:
                before = before[region[before] == region[some[np.searchsorted(ends, far, side="right")]]]
            distance[before] = level
        frontier = np.flatnonzero(distance[:-1] == level)
    return distance, True


def _push(
    index: Index,
    place: Nodes,
    load: Ints,
    capacity: Ints,
    region: Ints | None,
    distance: npt.NDArray[np.int32],
    level: int,
    wave: int,
) -> None:
    """Move excess of the nodes at `level` one step down, in place; repeated while the last step is taken by somebody."""
    while True:
        active = np.flatnonzero((distance[:-1] == level) & (load > capacity))
        moved = [_step(index, place, load, capacity, region, distance, some, wave) for some in index.blocks(active)]
        if level > 1 or not any(moved):
            return


def _step(
    index: Index,
    place: Nodes,
    load: Ints,
    capacity: Ints,
    region: Ints | None,
    distance: npt.NDArray[np.int32],
    active: Ints,
    wave: int,
) -> bool:
    """Move excess of `active` nodes, all of them at one level, one step down, in place; whether any was moved."""
    if not active.size:
        return False
    below = int(distance[active[0]]) - 1
    shards, which = index.placed_on(place, active)
    target, of = index.holders_of(shards)
    down = np.flatnonzero((distance == below).take(target))
    target, of = target[down], of[down]
    if region is not None or not below:
        good = np.ones(len(of), dtype=np.bool_) if below else (load < capacity)[target]
        if region is not None:
            good &= region[target] == region[active][which[of]]
        target, of = target[good], of[good]
    first = np.flatnonzero(np.diff(of, prepend=-1))
    target, of = target[first], of[first]
    source = which[of]
    chosen = _turn(source, active, wave) < (load - capacity)[active][source]
    target, of = target[chosen], of[chosen]
    if not below:
        fits = _rank(target) < (capacity - load)[target]
        target, of = target[fits], of[fits]
    if not of.size:
        return False
    place[shards[of]] = target
    load -= np.bincount(active[which[of]], minlength=index.nodes)
    load += np.bincount(target, minlength=index.nodes)
    return True


def _turn(group: Ints, nodes: Ints, wave: int) -> Ints:
    """The rank of each entry within its group (a run per node), rotated from node to node so that choices differ."""
    counts = np.bincount(group, minlength=len(nodes))
    starts = np.cumsum(counts) - counts
    shift = (nodes * 40503 + wave * 7919) % np.maximum(counts, 1)
    return np.asarray((np.arange(len(group)) - starts[group] + shift[group]) % counts[group])


def _rank(values: npt.NDArray[np.integer]) -> Ints:
    """How many equal values stand before each entry."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    starts = np.flatnonzero(np.diff(ordered, prepend=-1))
    lengths = np.diff(np.append(starts, len(ordered)))
    rank = np.empty(len(values), dtype=np.int64)
    rank[order] = np.arange(len(values)) - np.repeat(starts, lengths)
    return rank


def even_out(index: Index, place: Nodes, load: Ints, weight: Floats, alike: Alike | None = None) -> None:
    """Balance, in place, by an optimal semi-matching: load / weight is as even as the replicas allow, for every L_p norm.

    Harvey, Ladner, Lovasz, Tamir (J. Algorithms 59, 2006), found by decomposition (Fujishige, Math. Oper. Res. 5, 1980):
    a region of nodes is cut at the level at which it would be even. Above stay the nodes that cannot get down to it; they
    and the others never need to exchange a shard again. Nodes of weight 0 are left alone.
    """
    works = weight > 0
    region = np.where(works, 0, 1).astype(np.int64)
    low = np.zeros(2)
    high = np.array([(load[works] / weight[works]).max(initial=0.0) * (1 + SAME), 0.0])
    while (open_ := _undecided(load, weight, region, low, high)).any():
        below, above = _even_levels(load, weight, region, high)
        cut = np.where(above < high, above, below)
        goal = np.where(open_[region], np.floor(cut[region] * weight), load).astype(np.int64)
        stuck = settle(index, place, load, goal, np.append(region, NOWHERE), alike)
        count = len(low)
        ids, region = np.unique(region + count * (stuck & open_[region]), return_inverse=True)
        old, up = ids % count, ids >= count
        low = np.where(up, cut[old], low[old])
        high = np.where(up | ~open_[old], high[old], np.minimum(cut, high)[old])
        # On its way excess may have stopped on a node that is above the upper bound of its region by now.
        most = np.where(works, np.floor(high[region] * weight), load).astype(np.int64)
        settle(index, place, load, most, np.append(region, NOWHERE), alike)


def _even_levels(load: Ints, weight: Floats, region: Ints, high: Floats) -> tuple[Floats, Floats]:
    """Per region the least level at which it has room for its load, and the level just below that."""
    count = len(high)
    total = np.bincount(region, weights=load, minlength=count)
    below, above = np.zeros(count), high.copy()
    for _ in range(64):
        middle = (below + above) / 2
        fits = np.bincount(region, weights=np.floor(middle[region] * weight), minlength=count) >= total
        below, above = np.where(fits, below, middle), np.where(fits, middle, above)
    return below * (1 - SAME), above * (1 + SAME)


def _undecided(load: Ints, weight: Floats, region: Ints, low: Floats, high: Floats) -> Mask:
    """Per region, whether nodes in it may still differ in what their next shard costs."""
    works = weight > 0
    least = np.where(works, np.floor(low[region] * weight), load)
    most = np.where(works, np.floor(high[region] * weight), load)
    free = most > least
    several = np.bincount(region[most > least + 1], minlength=len(low)) > 0
    price = (least[free] + 1) / weight[free]
    cheap, dear = np.full(len(low), np.inf), np.full(len(low), -np.inf)
    np.minimum.at(cheap, region[free], price)
    np.maximum.at(dear, region[free], price)
    return (np.bincount(region[works], minlength=len(low)) > 1) & (several | (dear > cheap * (1 + 4 * SAME)))
