"""Whole shards to replica holders, so that the busiest holder is done as early as possible. Pure.

With divisible shards the earliest finish is a maximum flow (capacity = time x speed, bisection over the time). Whole shards
of unequal size are NP-hard, so: greedy, then improvement along chains of moves (exact for equal shards on equal nodes: an
optimal semi-matching), and where that stays behind, rounding of the flow (Lenstra, Shmoys, Tardos 1990). In every case
no node has more than its share at the divisible optimum plus one shard.

Of very many shards one more or less is nothing: there greedy is left alone where it is within one shard of what all nodes
together would take, else the numbers of shards are evened out (`waves.settle`, bisection over the level), and the best is taken.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from heapq import heapify, heappop, heappush
from itertools import chain

import numpy as np
import numpy.typing as npt

from datalocal.placement.alike import Alike
from datalocal.placement.csr import rows_of
from datalocal.placement.forest import to_forest
from datalocal.placement.problem import Ints, Nodes
from datalocal.placement.waves import Index, settle

MANY = 20_000
"""Shards beyond which chains of moves, a plain loop, are left out."""
LEVELS = 4
_FLOW_LIMIT = 2**31 - 1  # scipy's maximum_flow works on int32 capacities


def balance(rows: Sequence[int], holders: Sequence[Sequence[int]], speeds: Sequence[float]) -> list[int]:
    """For each shard the number of one of its holders, minimising max over nodes of rows / speed.

    `rows`: [N] of each shard; `holders`: [N] node numbers, at least one each; `speeds`: [M], above 0. No node gets more than
    T x speed + max(rows), where T is the optimum of shards divisible into rows (up to 2^31 rows in all, and up to MANY shards).
    Deterministic.
    """
    if not rows:
        return []
    if len(rows) > MANY:
        lengths = np.fromiter(map(len, holders), dtype=np.int64, count=len(rows))
        flat = np.fromiter(chain.from_iterable(holders), dtype=np.int32, count=int(lengths.sum()))
        offsets = np.concatenate(([0], np.cumsum(lengths)))
        found: list[int] = balance_many(np.array(rows), offsets, flat, speeds).tolist()
        return found
    chosen, load = _greedy(rows, holders, speeds)
    _improve(chosen, load, rows, holders, speeds)
    largest = max(rows)
    bound = _lower_bound(chosen, load, rows, holders, speeds)
    if _within(load, speeds, bound, largest) or sum(rows) > _FLOW_LIMIT:
        return chosen
    return _rounded_flow(rows, holders, speeds, bound, max(_times(load, speeds)))


def deal(rows: npt.NDArray[np.integer], speeds: Sequence[float]) -> npt.NDArray[np.int64]:
    """[N] a node for each of very many shards that may go to any: dealt largest first, to whom the next one is done first.

    Deterministic. Where all rows are the same no other way is done earlier; else nobody has more than his share by more than
    about the largest shard.
    """
    weight = np.array(speeds, dtype=np.float64)
    # By (N + M) / sum of speeds all nodes together have finished N, as each of them wastes less than one shard until then.
    most = np.ceil((len(rows) + len(weight)) * weight / weight.sum()).astype(np.int64)
    node = np.repeat(np.arange(len(weight)), most)
    turn = np.arange(len(node)) - np.repeat(np.cumsum(most) - most, most) + 1
    first = np.argsort(turn / weight[node], kind="stable")[: len(rows)]
    chosen = np.empty(len(rows), dtype=np.int64)
    chosen[np.argsort(-rows, kind="stable")] = node[first]
    return chosen


def balance_many(rows: Ints, offsets: Ints, holders: Nodes, speeds: Sequence[float]) -> Nodes:
    """As `balance`, of very many shards: `holders` of shard i stand from `offsets[i]` [N + 1] on.

    Greedy's choice, or one with the numbers of shards nearer to even.
    """
    counts = np.diff(offsets)
    holders = holders[np.lexsort((holders, np.repeat(np.arange(len(rows)), counts)))]
    found, load = _greedy(rows.tolist(), rows_of(offsets, holders), speeds)
    weight, chosen = np.array(speeds, dtype=np.float64), np.array(found, dtype=np.int32)
    if _within(load, speeds, sum(load) / sum(speeds), int(rows.max())):
        return chosen
    index = Index.of(offsets, holders, len(speeds))
    alike = Alike.of(offsets, holders, len(speeds))

    def latest(place: Nodes, amount: Ints | None) -> float:
        return float((np.bincount(place, weights=amount, minlength=len(speeds)) / weight).max())

    def settled(level: float) -> tuple[bool, Nodes]:
        """Greedy's choice, moved until no node has more than its share at `level`; whether that can be."""
        place = chosen.copy()
        count = np.bincount(place, minlength=len(speeds))
        stuck = settle(index, place, count, np.ceil(level * weight).astype(np.int64), alike=alike)
        return not stuck.any(), place

    low, high = len(rows) / sum(speeds), latest(chosen, None)
    choices = [chosen]
    for _ in range(LEVELS):
        level = (low + high) / 2
        able, place = settled(level)
        choices.append(place)
        low, high = (low, level) if able else (level, high)
    return min(choices, key=lambda place: latest(place, rows))


def _times(load: Sequence[int], speeds: Sequence[float]) -> list[float]:
    return [amount / speed for amount, speed in zip(load, speeds, strict=True)]


def _within(load: Sequence[int], speeds: Sequence[float], time: float, largest: int) -> bool:
    return all(amount <= time * speed + largest for amount, speed in zip(load, speeds, strict=True))


def _greedy(
    rows: Sequence[int], holders: Sequence[Sequence[int]], speeds: Sequence[float]
) -> tuple[list[int], list[int]]:
    """Largest shard first, those with the least choice before the others, to the holder that is done first."""
    chosen, load = [0] * len(rows), [0] * len(speeds)
    lengths = np.fromiter(map(len, holders), dtype=np.int64, count=len(rows))
    order = np.lexsort((lengths, -np.array(rows, dtype=np.int64))).tolist()
    if len(set(speeds)) == 1:  # the least load is then done first, and a plain loop of 1,000,000 shards need not divide
        for shard in order:
            best = holders[shard][0]
            least = load[best]
            for node in holders[shard]:
                if load[node] < least:
                    best, least = node, load[node]
            chosen[shard] = best
            load[best] = least + rows[shard]
        return chosen, load
    for shard in order:
        size, best, earliest = rows[shard], -1, float("inf")
        for node in holders[shard]:
            finish = (load[node] + size) / speeds[node]
            if finish < earliest:
                best, earliest = node, finish
        chosen[shard] = best
        load[best] += size
    return chosen, load


def _improve(
    chosen: list[int],
    load: list[int],
    rows: Sequence[int],
    holders: Sequence[Sequence[int]],
    speeds: Sequence[float],
) -> None:
    """Relieve the busiest node by a chain of moves, in place, as long as one helps."""
    held: list[set[int]] = [set() for _ in speeds]
    for shard, node in enumerate(chosen):
        held[node].add(shard)
    ideal = sum(rows) / sum(speeds)
    # A heap with stale entries: an entry counts only while it tells the node's load of now.
    heap = [(-amount / speed, node) for node, (amount, speed) in enumerate(zip(load, speeds, strict=True))]
    heapify(heap)
    for _ in range(2 * len(speeds) + 100):
        while -heap[0][0] != load[heap[0][1]] / speeds[heap[0][1]]:
            heappop(heap)
        worst, busiest = -heap[0][0], heap[0][1]
        if worst <= ideal:
            return
        chain = _chain(busiest, worst, held, load, rows, holders, speeds)
        if not chain:
            return
        for shard, source, target in chain:
            held[source].remove(shard)
            held[target].add(shard)
            load[source] -= rows[shard]
            load[target] += rows[shard]
            chosen[shard] = target
        for node in {busiest, *(target for _, _, target in chain)}:
            heappush(heap, (-load[node] / speeds[node], node))


def _chain(
    start: int,
    worst: float,
    held: Sequence[set[int]],
    load: Sequence[int],
    rows: Sequence[int],
    holders: Sequence[Sequence[int]],
    speeds: Sequence[float],
) -> list[tuple[int, int, int]]:
    """The shortest chain (shard, from, to) after which every node of it is below `worst`; nothing when there is none."""
    came: dict[int, tuple[int, int]] = {start: (-1, -1)}
    queue = deque([start])
    while queue:
        node = queue.popleft()
        got = rows[came[node][0]] if node != start else 0
        for shard in sorted(held[node]):
            size = rows[shard]
            if not size or (load[node] + got - size) / speeds[node] >= worst:
                continue
            for other in holders[shard]:
                if other in came:
                    continue
                came[other] = (shard, node)
                if (load[other] + size) / speeds[other] < worst:
                    return _walk(came, other)
                queue.append(other)
    return []


def _walk(came: dict[int, tuple[int, int]], end: int) -> list[tuple[int, int, int]]:
    chain = []
    while came[end][1] >= 0:
        shard, source = came[end]
        chain.append((shard, source, end))
        end = source
    return chain[::-1]


def _lower_bound(
    chosen: Sequence[int],
    load: Sequence[int],
    rows: Sequence[int],
    holders: Sequence[Sequence[int]],
    speeds: Sequence[float],
) -> float:
    """A time that no placement beats: all nodes together, or those that the busiest one's shards can lead to.

    Shards in a set of nodes that is closed under "could go there" cannot leave it: rows / speeds of the set is a bound.
    """
    times = _times(load, speeds)
    bound = sum(load) / sum(speeds)
    if max(times) <= bound:
        return bound
    held: list[list[int]] = [[] for _ in speeds]
    for shard, node in enumerate(chosen):
        held[node].append(shard)
    busiest = max(range(len(speeds)), key=lambda node: (times[node], -node))
    closed, queue = {busiest}, deque([busiest])
    while queue:
        for shard in held[queue.popleft()]:
            for other in holders[shard]:
                if other not in closed:
                    closed.add(other)
                    queue.append(other)
    return max(bound, sum(load[node] for node in closed) / sum(speeds[node] for node in closed))


def _rounded_flow(
    rows: Sequence[int], holders: Sequence[Sequence[int]], speeds: Sequence[float], low: float, high: float
) -> list[int]:
    """The divisible optimum by bisection, its divided shards given whole to one node each: at most one more per node."""
    divided = _flow(rows, holders, speeds, high)
    assert divided is not None, "the placement at hand finishes at this time"
    for _ in range(40):
        middle = (low + high) / 2
        flow = _flow(rows, holders, speeds, middle)
        if flow is None:
            low = middle
        else:
            high, divided = middle, flow
        if high - low <= 1e-9 * high:
            break
    to_forest(divided, lambda shard, node: 0)
    chosen = [
        next(iter(divided[shard]), holders[shard][0]) if shard in divided else holders[shard][0]
        for shard in range(len(rows))
    ]
    for shard, node in _one_each({s: set(places) for s, places in divided.items() if len(places) > 1}).items():
        chosen[shard] = node
    return chosen


def _one_each(divided: dict[int, set[int]]) -> dict[int, int]:
    """A node for each shard of a forest, no node twice: hung up at a node, every shard takes one of its children."""
    joined: dict[int, list[int]] = {}
    for shard, places in divided.items():
        for node in places:
            joined.setdefault(node, []).append(shard)
    taken: dict[int, int] = {}
    seen: set[int] = set()
    for root in sorted(joined):
        if root in seen:
            continue
        seen.add(root)
        queue = deque([root])
        while queue:
            node = queue.popleft()
            for shard in joined[node]:
                if shard in taken:
                    continue
                children = sorted(divided[shard] - {node})
                taken[shard] = children[0]
                seen.update(children)
                queue.extend(children)
    return taken


def _flow(
    rows: Sequence[int], holders: Sequence[Sequence[int]], speeds: Sequence[float], time: float
) -> dict[int, dict[int, int]] | None:
    """Rows of each shard on each holder so that every node is done by `time`, or None when there is no such division."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_flow

    total = sum(rows)
    shards, nodes = len(rows), len(speeds)
    source, sink = shards + nodes, shards + nodes + 1
    caps = np.minimum(np.floor(time * np.asarray(speeds) + 1e-9), _FLOW_LIMIT).astype(np.int32)
    edges = [(shard, shards + node, rows[shard]) for shard in range(shards) for node in holders[shard] if rows[shard]]
    edges += [(source, shard, rows[shard]) for shard in range(shards) if rows[shard]]
    edges += [(shards + node, sink, int(caps[node])) for node in range(nodes) if caps[node]]
    table: npt.NDArray[np.int64] = np.array(edges, dtype=np.int64).reshape(-1, 3)
    graph = csr_array((table[:, 2].astype(np.int32), (table[:, 0], table[:, 1])), shape=(sink + 1, sink + 1))
    result = maximum_flow(graph, source, sink)
    if int(result.flow_value) < total:
        return None
    found = result.flow.tocoo()
    divided: dict[int, dict[int, int]] = {}
    for start, end, amount in zip(found.row.tolist(), found.col.tolist(), found.data.tolist(), strict=True):
        if amount > 0 and start < shards:
            divided.setdefault(start, {})[end - shards] = int(amount)
    return divided
