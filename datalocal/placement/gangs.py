"""Which m nodes train: spread, packed into racks, one box, or those that use the most of the data where it lies. Pure.

A gang covers the shards of which one of its nodes holds a replica; what it does not cover is read over the network, and so is
what one node holds beyond its share. With replicas laid out at random m of M nodes cover 1 - (1 - m / M)^r, and choosing them well
adds a few points only. Where one node wrote everything its neighbours in the rack may hold nothing at all, and it adds a lot.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heappop, heappush

import numpy as np

from datalocal.errors import PlacementError
from datalocal.placement.gangflow import GangFlow
from datalocal.placement.problem import Ints, Problem
from datalocal.placement.waves import Index
from datalocal.spec.job import GangChoice


def chosen(problem: Problem, choice: GangChoice) -> list[int]:
    """The gang that a job asks for: node numbers, ascending. Raises PlacementError."""
    size = choice.nodes or 1
    match choice.choose:
        case "one-box":
            return one_box(problem)
        case "spread":
            return spread(problem, size)
        case "rack-packed":
            return rack_packed(problem, size)
        case "most-covering":
            return most_covering(problem, size)


def covered_bytes(problem: Problem, nodes: Sequence[int]) -> int:
    """Bytes of the shards that at least one of `nodes` holds."""
    index = Index.of(problem.replica_offsets, problem.replica_nodes, problem.nodes)
    held, _ = index.shards_on(np.asarray(nodes, dtype=np.int64))
    return int(problem.shard_bytes[np.unique(held)].sum())


def spread(problem: Problem, size: int) -> list[int]:
    """One node of each rack in turn, in each rack those that hold the most bytes first. Raises PlacementError."""
    held = _held_bytes(problem)
    able = _able(problem, size)
    turn: dict[int, int] = {}
    rounds = []
    for node in sorted(able, key=lambda node: (-held[node], node)):
        rack = int(problem.rack[node])
        turn[rack] = turn.get(rack, 0) + 1
        rounds.append((turn[rack], -held[node], node))
    return sorted(node for _, _, node in sorted(rounds)[:size])


def rack_packed(problem: Problem, size: int) -> list[int]:
    """As few racks as hold so many working nodes, the racks with the most of them first. Raises PlacementError."""
    held = _held_bytes(problem)
    able = _able(problem, size)
    count = np.bincount(problem.rack[able], minlength=len(problem.rack_names))
    full = int(np.sort(count)[::-1].cumsum().searchsorted(size)) + 1
    rest = size - int(np.sort(count)[::-1][: full - 1].sum())
    order = sorted(range(len(count)), key=lambda rack: (-count[rack], rack))[: full - 1]
    others = [rack for rack in range(len(count)) if rack not in order and count[rack] >= rest]
    of = {
        rack: sorted((n for n in able if problem.rack[n] == rack), key=lambda n: (-held[n], n))
        for rack in {*order, *others}
    }
    last = max(others, key=lambda rack: (sum(held[node] for node in of[rack][:rest]), -rack))
    return sorted([node for rack in order for node in of[rack]] + of[last][:rest])


def one_box(problem: Problem) -> list[int]:
    """The working node with the most slots, among those the one that holds the most bytes. Raises PlacementError."""
    held = _held_bytes(problem)
    return [min(_able(problem, 1), key=lambda node: (-int(problem.slots[node]), -held[node], node))]


def most_covering(problem: Problem, size: int) -> list[int]:
    """Node after node the one that adds the most: at least (1 - 1/e) of what any gang of this size uses where it lies.

    What counts is `local_rows`: a node that holds everything still trains on its share only, and the others need their own. Of
    nodes that add as much, one that holds more that is new. Nemhauser, Wolsey, Fisher (Math. Programming 14, 1978): this is
    monotone and submodular. Lazily (Minoux 1978): what a node adds only shrinks, so it is counted anew only when it stands
    first. Raises PlacementError.
    """
    able = _able(problem, size)
    quota = quota_rows(problem, size)
    flow = GangFlow(problem, quota)
    held = np.bincount(problem.replica_nodes, weights=problem.shard_rows[problem.owner], minlength=problem.nodes)
    heap = [(-min(quota, int(held[node])), -int(held[node]), node) for node in able]
    heapify(heap)
    chosen: list[int] = []
    while len(chosen) < size:
        most, _, node = heappop(heap)
        new = -flow.new_rows(node)
        most = max(most, new - flow.waiting_rows)
        wanted = 0
        if heap:
            others, their_new, other = heap[0]
            wanted = -others + ((new, node) > (their_new, other))
        if -most < wanted:
            heappush(heap, (most, new, node))
        elif (gained := flow.add(node, at_least=wanted)) < wanted:
            heappush(heap, (-gained, new, node))
        else:
            chosen.append(node)
    return sorted(chosen)


def quota_rows(problem: Problem, size: int) -> int:
    """Rows that each of `size` nodes uses in an epoch: all use equally many, so that they make the same steps."""
    return -(-int(problem.shard_rows.sum()) // size)


def local_rows(problem: Problem, nodes: Sequence[int]) -> int:
    """Rows that a gang of `nodes` can use where they lie, each node at most its quota: a maximum flow."""
    flow = GangFlow(problem, quota_rows(problem, len(nodes)))
    for node in nodes:
        flow.add(node)
    return flow.local_rows


def _held_bytes(problem: Problem) -> list[int]:
    sizes: Ints = np.bincount(
        problem.replica_nodes, weights=problem.shard_bytes[problem.owner], minlength=problem.nodes
    ).astype(np.int64)
    return [int(size) for size in sizes]


def _able(problem: Problem, size: int) -> list[int]:
    able = np.flatnonzero(problem.rate > 0)
    if not 1 <= size <= len(able):
        raise PlacementError(
            f"a gang of {size} nodes cannot be had from {len(able)} that are up and have a slot", "ask for fewer"
        )
    return [int(node) for node in able]
