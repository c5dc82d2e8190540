"""How many shards can be worked on where they lie, exactly, and who then works on what. Pure.

The count is a maximum flow (`waves`); among the optimal answers the one with the most even loads is taken (an optimal
semi-matching), what cannot be local fills the nodes that are done first, and stays in its rack where that is possible.
Where shards differ in size the heaviest come first: the sets of shards that can be local together form a matroid
(a transversal one), so taking them heaviest first, each as long as it fits with all before it, moves the fewest bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from datalocal.placement.alike import Alike
from datalocal.placement.csr import spans
from datalocal.placement.problem import Assigned, Floats, Ints, Mask, Nodes, Problem, Reason, assigned
from datalocal.placement.waves import NOWHERE, Index, Rows, by_place, even_out, settle, spread

SIZE_CLASSES = 16
"""Sizes are told apart as long as there are no more of them than this, else by quantiles; the gap says what that cost."""
EQUAL_SIZES_CV = 0.1
"""Below this coefficient of variation many different sizes count as equal (full blocks, as `ingest` writes them)."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cut:
    """Of the shards of at least `at_least_bytes`, no placement keeps more than all but `non_local` local."""

    at_least_bytes: int
    nodes: Mask
    """[M] the nodes D: the only holders of more shards than they can take."""
    non_local: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Matching:
    """As many shards as possible on their holders; the rest, whose holders are all full, NOWHERE."""

    index: Index
    alike: Alike | None
    """Kinds of the index's shards, where there are few."""
    capacity: Ints
    placed: Nodes
    """[N] in the order of `index`."""
    order: npt.NDArray[np.int32] | None
    """[N] which shard of the problem each of the index is; None where they are the same."""
    load: Ints
    cuts: tuple[Cut, ...]
    """For ever smaller shards; the last one is about all of them."""

    @property
    def place(self) -> Nodes:
        """[N] the node of each shard, in the problem's order."""
        if self.order is None:
            return self.placed
        place = np.empty_like(self.placed)
        place[self.order] = self.placed
        return place

    @property
    def non_local(self) -> int:
        """Shards that cannot be local, however the others are placed."""
        return self.cuts[-1].non_local


def match(problem: Problem, capacity: Ints, index: Index | None = None) -> Matching:
    """The largest number of local shards within `capacity` [M], and among those sets one that keeps the most bytes local."""
    place = np.full(problem.shards, NOWHERE, dtype=np.int32)
    load = np.zeros(len(capacity), dtype=np.int64)
    sizes, order = problem.shard_bytes, None
    classes = size_classes(sizes)
    if index is None:
        # Shards that start on the same node get numbers in a row: what is read together lies together from here on.
        rows = Rows.by_shard(problem.replica_offsets, problem.replica_nodes)
        spread(rows, capacity.astype(np.float64), place, load, classes[0])
        order = by_place(place, problem.nodes)
        index = Index.of(*rows.permuted(order), problem.nodes)
        place, sizes = place.take(order), sizes.take(order)
        classes = size_classes(sizes) if len(classes) > 1 else classes
    else:
        spread(index, capacity.astype(np.float64), place, load, classes[0])
    alike = Alike.of(index.offsets, index.holders, index.nodes)
    cuts: list[Cut] = []
    for shards in classes:
        if cuts:
            spread(index, capacity.astype(np.float64), place, load, shards)
        _keep(index, place, load, capacity, shards, alike)
        left_out = np.flatnonzero(place == NOWHERE)
        if cuts or len(shards) < problem.shards:
            edge = int(sizes[shards].min())
            left_out = left_out[sizes[left_out] >= edge]
        else:
            edge = int(sizes.min(initial=0))
        cuts.append(Cut(at_least_bytes=edge, nodes=reached(index, place, left_out), non_local=len(left_out)))
    return Matching(index=index, alike=alike, capacity=capacity, placed=place, order=order, load=load, cuts=tuple(cuts))


def size_classes(shard_bytes: Ints) -> list[Ints]:
    """Shard numbers by size, heaviest first: a class per size. Of many sizes one per quantile, or one when they are about equal."""
    if not len(shard_bytes) or shard_bytes.min() == shard_bytes.max():
        return [np.arange(len(shard_bytes))]
    edges = np.unique(shard_bytes)
    many = len(edges) > SIZE_CLASSES
    if many and shard_bytes.std() <= EQUAL_SIZES_CV * shard_bytes.mean():
        return [np.arange(len(shard_bytes))]
    if many:
        edges = np.unique(np.quantile(shard_bytes, np.arange(SIZE_CLASSES) / SIZE_CLASSES, method="lower"))
    of = np.searchsorted(edges, shard_bytes, side="right") - 1
    return [np.flatnonzero(of == number) for number in range(len(edges) - 1, -1, -1)]


def _keep(index: Index, place: Nodes, load: Ints, capacity: Ints, added: Ints, alike: Alike | None = None) -> None:
    """Of the shards `added` to a matching by `spread`, keep as many as fit, in place. Older ones stay, though they may move."""
    new = added[place[added] != NOWHERE]
    older = int(load.sum()) > len(new)
    stuck = settle(index, place, load, capacity, alike=alike)
    if not (stuck & (load > capacity)).any():
        return
    # Excess must leave the matching as new shards. Old ones are first moved to where new ones can make room for them.
    new = new[stuck[place[new]]]
    where = place[new]
    place[new] = NOWHERE
    load -= np.bincount(where, minlength=index.nodes)
    if older:
        settle(index, place, load, capacity)
    kept = _within(where, capacity - load)
    place[new[kept]] = where[kept]
    load += np.bincount(where[kept], minlength=index.nodes)


def _within(where: Nodes, room: Ints) -> Mask:
    """Which entries to keep so that no node gets more than `room`: the first ones."""
    order = np.argsort(where, kind="stable")
    counts = np.bincount(where, minlength=len(room))
    starts = np.cumsum(counts) - counts
    kept = np.empty(len(where), dtype=np.bool_)
    kept[order] = np.arange(len(where)) - starts[where[order]] < room[where[order]]
    return kept


def reached(index: Index, place: Nodes, shards: npt.NDArray[np.integer]) -> Mask:
    """[M] the nodes that `shards` could displace others from, over any number of moves: the smallest minimum cut."""
    found = np.zeros(index.nodes, dtype=np.bool_)
    found[index.holders_of(shards)[0]] = True
    frontier = np.flatnonzero(found)
    while frontier.size:
        before = found.copy()
        for some in index.blocks(frontier):
            found[index.holders_of(index.placed_on(place, some)[0])[0]] = True
        frontier = np.flatnonzero(found & ~before)
    return found


def finish(problem: Problem, matching: Matching, *, policy: str, makespan_s: float | None) -> Assigned:
    """Even out the loads, place what cannot be local, and say how long it takes. The matching's arrays are changed."""
    load = matching.load
    inside = matching.cuts[-1].nodes
    even_out(matching.index, matching.placed, load, np.where(inside, 0.0, problem.rate), matching.alike)
    place = matching.place
    left = np.flatnonzero(place == NOWHERE)
    if left.size:
        room = pour(load, matching.capacity, problem.rate, len(left))
        place[left] = near(problem, left, room)
        load += room
    if makespan_s is None:
        makespan_s = finishing(problem, load)
    return assigned(problem, place, policy=policy, makespan_s=makespan_s, why=Reason.HOLDERS_FULL)


def pour(load: Ints, capacity: Ints, rate: Floats, count: int) -> Ints:
    """[M] how many of `count` more shards each node gets so that the last one is done as early as possible."""
    room = capacity - load
    low, high = 0.0, float((capacity[rate > 0] / rate[rate > 0]).max(initial=0.0)) * (1 + 1e-9)

    def poured(level: float) -> Ints:
        return np.asarray(np.clip(np.floor(level * rate).astype(np.int64) - load, 0, room))

    for _ in range(48):
        middle = (low + high) / 2
        low, high = (low, middle) if int(poured(middle).sum()) >= count else (middle, high)
    given = poured(low)
    # What is left goes to nodes whose next shard ends at the same moment; rounding may leave a few more than those.
    while (missing := count - int(given.sum())) > 0:
        price = np.where(given < room, (load + given + 1) / np.maximum(rate, 1e-300), np.inf)
        cheapest = np.argsort(price, kind="stable")[:missing]
        given[cheapest[given[cheapest] < room[cheapest]]] += 1
    return given


def cheapest(price: Floats | Ints, capacity: Floats | Ints, count: int) -> Floats:
    """[M] how many of `count` shards each node gets where those with the lowest `price` [M] are filled first."""
    order = np.argsort(price, kind="stable")
    taken = np.zeros(len(capacity))
    taken[order] = np.diff(np.minimum(np.cumsum(capacity[order]), count), prepend=0)
    return taken


def near(problem: Problem, shards: Ints, room: Ints, alive: Mask | None = None) -> Nodes:
    """A node for each of `shards`, at most `room` [M] on each, as many as possible in a rack that holds a replica.

    `alive` [M] stands for the problem's own.
    """
    racks = len(problem.rack_names)
    of, where = np.divmod(rack_pairs(problem, shards, alive), racks)
    offsets = np.searchsorted(of, np.arange(len(shards) + 1)).astype(np.int64)
    index = Index.of(offsets, where.astype(np.int32), racks)
    quota = np.bincount(problem.rack, weights=room, minlength=racks).astype(np.int64)
    place, load = np.full(len(shards), NOWHERE, dtype=np.int32), np.zeros(racks, dtype=np.int64)
    every = np.arange(len(shards))
    spread(index, quota.astype(np.float64), place, load, every)
    _keep(index, place, load, quota, every)
    away = np.flatnonzero(place == NOWHERE)
    place[away] = np.repeat(
        np.arange(racks), _first(quota - load, np.zeros(racks, dtype=np.int64), np.array([len(away)]))
    )
    by_rack = np.argsort(problem.rack, kind="stable")
    chosen = np.empty(len(shards), dtype=np.int32)
    in_rack = np.bincount(place, minlength=racks)
    chosen[np.argsort(place, kind="stable")] = np.repeat(by_rack, _first(room[by_rack], problem.rack[by_rack], in_rack))
    return chosen


def _first(room: Ints, group: npt.NDArray[np.integer], wanted: Ints) -> Ints:
    """How much of each `room` is taken when every group (a run) takes what it wants from its first ones on."""
    before = np.cumsum(room) - room
    starts = np.searchsorted(group, np.arange(len(wanted)))
    before -= before[np.minimum(starts, len(room) - 1)][group]
    return np.asarray(np.clip(wanted[group] - before, 0, room))


def rack_pairs(problem: Problem, shards: Ints, alive: Mask | None = None) -> Ints:
    """Each (position in `shards`, rack of one of its replicas) once, as position x racks + rack, ascending."""
    entry, of = spans(problem.replica_offsets, shards)
    holder = problem.replica_nodes[entry]
    up = (problem.alive if alive is None else alive)[holder]
    pairs = np.sort(of[up] * len(problem.rack_names) + problem.rack[holder[up]])
    return pairs[np.diff(pairs, prepend=-1) > 0]  # np.unique hashes, which takes ten times as long


def finishing(problem: Problem, load: Ints) -> float:
    """The smallest T within whose capacity the loads [M] fit."""
    busy = load > 0
    if not busy.any():
        return 0.0
    makespan_s = float((load[busy] / problem.rate[busy]).max())
    while (problem.capacity(makespan_s)[busy] < load[busy]).any():  # rounding of the quotient
        makespan_s = float(np.nextafter(makespan_s, np.inf))
    return makespan_s


def unlimited(problem: Problem) -> Ints:
    """[M] capacity when time does not matter: everything on any node that works."""
    return np.where(problem.rate > 0, problem.shards, 0).astype(np.int64)


def least_local_makespan(problem: Problem, index: Index | None = None) -> float:
    """The smallest T at which as many shards are local as ever can be (bytes first, then makespan)."""
    problem.least_makespan()  # refuses a cluster that cannot work
    return finish(problem, match(problem, unlimited(problem), index), policy="", makespan_s=None).makespan_s
