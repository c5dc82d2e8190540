"""Node, rack and off-rack tiers, and what a shard costs on each node, at the least cost in all: Quincy's graph. Pure.

Isard et al., Quincy, SOSP 2009: shard -> its replica nodes (free), shard -> its replicas' racks -> their nodes, shard -> X ->
every rack, node -> sink with the node's capacity. Solved as a minimum-cost flow by OR-tools in a process of its own. Where it
is not installed or runs out of time, the answer is the best of the exact smaller problem (as many local as can be, then as
many in their rack as can be), beside a bound that says how far it may be from the optimum.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from datalocal.placement.alike import runs
from datalocal.placement.flow import EQUAL_SIZES_CV, cheapest, match, near, rack_pairs
from datalocal.placement.mincost import Graph, NotSolvedError, solve
from datalocal.placement.problem import Assigned, Ints, Nodes, Problem, Reason, assigned, relative_gap
from datalocal.placement.waves import NOWHERE, Index

TIMEOUT_S = 300.0
SIZE_STEPS = 100


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Tariff:
    """What placing a shard costs, in whole units; where sizes differ, the tiers are per mean-sized shard and grow with size."""

    rack: int = 1
    off_rack: int = 4
    node: Ints | None = None
    """[M] for every shard worked on there (energy, wear); None: nothing."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Priced:
    """An assignment, its cost and a bound that no assignment is below, both in the tariff's units."""

    answer: Assigned
    cost: float
    bound: float
    unsolved: str = ""
    """Why the bound and not the optimum stands there; empty when the cost is the optimum."""

    @property
    def gap(self) -> float:
        """(cost - bound) / bound; 0 for an optimum, infinite for a bound of 0 that is not reached."""
        return relative_gap(self.cost, self.bound)


def quincy(
    problem: Problem, makespan_s: float | None = None, *, tariff: Tariff | None = None, timeout_s: float = TIMEOUT_S
) -> Priced:
    """The cheapest assignment within T (None: the shortest possible). Raises PlacementError when T is too short for N shards."""
    tariff = tariff or Tariff()
    makespan_s = problem.least_makespan() if makespan_s is None else makespan_s
    capacity = problem.require(makespan_s)
    weight = weights(problem)
    parts = Parts.of(problem, weight)
    try:
        flows = solve(graph(problem, parts, capacity, tariff), timeout_s)
    except NotSolvedError as error:
        return _instead(problem, makespan_s, tariff, weight, str(error))
    node = _placed(problem, parts, flows)
    answer = assigned(problem, node, policy="quincy", makespan_s=makespan_s, why=Reason.TRADED)
    total = cost(problem, answer, tariff, weight)
    return Priced(answer=answer, cost=total, bound=total)


def weights(problem: Problem) -> Ints:
    """[N] a shard's size in the units of the tariff: 1 when sizes are about equal, else hundredths of the mean."""
    mean = problem.shard_bytes.mean() if problem.shards else 0.0
    if not mean or problem.shard_bytes.std() <= EQUAL_SIZES_CV * mean:
        return np.ones(problem.shards, dtype=np.int64)
    return np.round(problem.shard_bytes / mean * SIZE_STEPS).astype(np.int64)


def _steps(weight: Ints) -> int:
    """Units of `weight` per unit of the tariff."""
    return 1 if not len(weight) or (weight == 1).all() else SIZE_STEPS


def cost(problem: Problem, answer: Assigned, tariff: Tariff, weight: Ints) -> float:
    """What an assignment costs by the tariff."""
    tier = np.array([0, tariff.rack, tariff.off_rack])[answer.tier]
    nodes = 0 if tariff.node is None else int(tariff.node[answer.node].sum())
    return float((tier * weight).sum() / _steps(weight) + nodes)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Parts:
    """Shards with the same holders and the same size are one vertex: G groups, and the arcs of a group."""

    members: Ints
    """[N] shards, group after group."""
    starts: Ints
    """[G + 1] into `members`."""
    weight: Ints
    """[G]"""
    node_of: Ints
    """Group of each arc to a node, and that node."""
    node: Nodes
    rack_of: Ints
    rack: Ints

    @classmethod
    def of(cls, problem: Problem, weight: Ints, grouped: tuple[Ints, Ints] | None = None) -> Parts:
        """`grouped`: members and starts, when they are known."""
        members, starts = grouped or runs(problem.replica_offsets, problem.replica_nodes, problem.nodes, weight)
        if len(starts) > 0.5 * problem.shards:  # it would gain little
            members, starts = np.arange(problem.shards), np.arange(problem.shards + 1)
        first = members[starts[:-1]]
        index = Index.of(problem.replica_offsets, problem.replica_nodes, problem.nodes)
        node, node_of = index.holders_of(first)
        up = problem.alive[node]
        rack_of, rack = np.divmod(rack_pairs(problem, first), len(problem.rack_names))
        return cls(
            members=members,
            starts=starts,
            weight=weight[first],
            node_of=node_of[up],
            node=node[up],
            rack_of=rack_of,
            rack=rack,
        )


def graph(problem: Problem, parts: Parts, capacity: Ints, tariff: Tariff) -> Graph:
    """Vertices: G groups, M nodes, K racks, X, sink. Arcs in the order in which `_placed` reads their flows."""
    groups, nodes, racks = len(parts.starts) - 1, problem.nodes, len(problem.rack_names)
    size = np.diff(parts.starts)
    node0, rack0, hub, sink = groups, groups + nodes, groups + nodes + racks, groups + nodes + racks + 1
    in_rack = np.bincount(problem.rack, weights=capacity, minlength=racks).astype(np.int64)
    every, free = np.arange(nodes), np.zeros
    own = free(nodes) if tariff.node is None else tariff.node * _steps(parts.weight)
    arcs = (
        (parts.node_of, node0 + parts.node, size[parts.node_of], free(len(parts.node))),
        (parts.rack_of, rack0 + parts.rack, size[parts.rack_of], tariff.rack * parts.weight[parts.rack_of]),
        (np.arange(groups), np.full(groups, hub), size, tariff.off_rack * parts.weight),
        (np.full(racks, hub), rack0 + np.arange(racks), in_rack, free(racks)),
        (rack0 + problem.rack, node0 + every, capacity, free(nodes)),
        (node0 + every, np.full(nodes, sink), capacity, own),
    )
    tail, head, bounds, costs = (np.concatenate(column) for column in zip(*arcs, strict=True))
    supply = np.concatenate((size, np.zeros(nodes + racks + 1), [-problem.shards]))
    return Graph(
        tail=tail.astype(np.int32),
        head=head.astype(np.int32),
        capacity=bounds.astype(np.int64),
        cost=costs.astype(np.int64),
        supply=supply.astype(np.int64),
    )


def _placed(problem: Problem, parts: Parts, flows: Ints) -> Nodes:
    """[N] nodes out of the flows: first along the arcs to nodes, then by way of racks."""
    groups, racks = len(parts.starts) - 1, len(problem.rack_names)
    ends = np.cumsum([len(parts.node), len(parts.rack), groups, racks, problem.nodes])
    to_node, to_rack, to_hub, from_hub, from_rack, _ = np.split(flows, ends)
    hub = racks  # behind the racks
    direct = np.repeat(np.stack((parts.node_of, parts.node)), to_node, axis=1)
    by_rack = np.repeat(np.stack((parts.rack_of, parts.rack)), to_rack, axis=1)
    by_hub = np.repeat(np.stack((np.arange(groups), np.full(groups, hub))), to_hub, axis=1)
    by_hub[1] = np.repeat(np.arange(racks), from_hub)
    through = np.concatenate((by_rack, by_hub), axis=1)
    through = through[:, np.argsort(through[1], kind="stable")]
    order = np.argsort(problem.rack, kind="stable")
    through[1] = np.repeat(order, from_rack[order])
    every = np.concatenate((direct, through), axis=1)
    every = every[:, np.argsort(every[0], kind="stable")]
    node = np.empty(problem.shards, dtype=np.int32)
    node[parts.members] = every[1]
    return node


def _instead(problem: Problem, makespan_s: float, tariff: Tariff, weight: Ints, why: str) -> Priced:
    """Local first, then rack; and what the two cuts, of nodes and of racks, prove together."""
    matching = match(problem, problem.capacity(makespan_s))
    left_out = weight[matching.place == NOWHERE]
    non_local, lightest = matching.non_local, int(weight.min(initial=0))
    place, left = matching.place, np.flatnonzero(matching.place == NOWHERE)
    place[left] = near(problem, left, matching.capacity - matching.load)
    answer = assigned(problem, place, policy="quincy", makespan_s=makespan_s, why=Reason.HOLDERS_FULL)
    off_rack = _off_rack_at_least(problem, problem.capacity(makespan_s))
    per_unit = _steps(weight)
    moved = int(left_out.sum()) if (weight == 1).all() else non_local * lightest
    bound = (tariff.rack * moved + max(0, tariff.off_rack - tariff.rack) * off_rack * lightest) / per_unit
    if tariff.node is not None:
        bound += int((cheapest(tariff.node, problem.capacity(makespan_s), problem.shards) * tariff.node).sum())
    total = cost(problem, answer, tariff, weight)
    note = f"not known to be the cheapest: {why}; cost {total:,.0f}, no assignment costs less than {bound:,.0f}"
    return Priced(answer=replace(answer, notes=(note,)), cost=total, bound=bound, unsolved=why)


def _off_rack_at_least(problem: Problem, capacity: Ints) -> int:
    """Shards that must leave the racks of their replicas: the same maximum flow, with racks for nodes."""
    racks = len(problem.rack_names)
    of, rack = np.divmod(rack_pairs(problem, np.arange(problem.shards)), racks)
    offsets = np.searchsorted(of, np.arange(problem.shards + 1)).astype(np.int64)
    in_rack = np.bincount(problem.rack, weights=capacity, minlength=racks).astype(np.int64)
    return match(problem, in_rack, Index.of(offsets, rack.astype(np.int32), racks)).non_local
