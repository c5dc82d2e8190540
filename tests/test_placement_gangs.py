"""Choosing the nodes that train: the greedy gang keeps its promise, and racks and boxes are what they say."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import networkx as nx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datalocal.errors import PlacementError
from datalocal.placement import gangs, synthetic
from datalocal.placement.gangflow import GangFlow
from datalocal.placement.problem import Problem
from tests.test_placement_flow import holders_of, problem_of, problems


def local_by_networkx(problem: Problem, gang: Sequence[int]) -> int:
    """Rows used where they lie, each node at most its share of all of them (rounded up)."""
    return flow_by_networkx(problem, gang, -(-int(problem.shard_rows.sum()) // len(gang)))


def flow_by_networkx(problem: Problem, gang: Sequence[int], quota: int) -> int:
    graph = nx.DiGraph()
    graph.add_nodes_from(("source", "sink"))
    for shard, held in enumerate(holders_of(problem)):
        graph.add_edge("source", ("shard", shard), capacity=int(problem.shard_rows[shard]))
        graph.add_edges_from((("shard", shard), ("node", node)) for node in held if node in gang)
    for node in gang:
        graph.add_edge(("node", node), "sink", capacity=quota)
    return int(nx.maximum_flow_value(graph, "source", "sink"))


@st.composite
def with_rows(draw: st.DrawFn) -> Problem:
    """Shards of unequal rows, some of them empty; some nodes are full of them and some have none."""
    problem = draw(problems(down=True))
    rows = draw(st.lists(st.integers(0, 9), min_size=problem.shards, max_size=problem.shards))
    return replace(problem, shard_rows=np.array(rows, dtype=np.int64))


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(problem=with_rows(), order=st.randoms(use_true_random=False), spent=st.floats(0.1, 1))
def test_what_a_gang_uses_where_it_lies_is_a_maximum_flow_in_whatever_order_its_nodes_come(
    problem: Problem, order: random.Random, spent: float
) -> None:
    nodes = list(range(problem.nodes))
    order.shuffle(nodes)
    for gang in (nodes[: len(nodes) // 2 + 1], nodes):
        assert gangs.local_rows(problem, gang) == local_by_networkx(problem, gang)
    # Less than the quota besides: more nodes are full, and rows wait at them for longer ways.
    flow = GangFlow(problem, quota_rows := int(spent * gangs.quota_rows(problem, len(nodes))))
    for count, node in enumerate(nodes, start=1):
        before = flow.local_rows
        gained = flow.add(node, at_least=10**9)
        assert flow.local_rows == before, "it was only asked what it would add"
        for other in nodes[count:]:
            flow.add(other, at_least=10**9)
        assert flow.add(node) == gained == flow.local_rows - before
        rows = int(problem.shard_rows[[bool({*held} & {*nodes[:count]}) for held in holders_of(problem)]].sum())
        assert flow.covered_rows == rows and flow.waiting_rows == rows - flow.local_rows
        if count == len(nodes):
            assert flow.local_rows == flow_by_networkx(problem, nodes, quota_rows)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(problem=with_rows(), size=st.integers(1, 8))
def test_the_greedy_gang_uses_at_least_1_minus_1_over_e_of_the_best_and_is_the_plain_greedy_one(
    problem: Problem, size: int
) -> None:
    able = np.flatnonzero(problem.rate > 0).tolist()
    if size > len(able):
        for choose in (gangs.most_covering, gangs.spread, gangs.rack_packed):
            with pytest.raises(PlacementError, match=f"{len(able)} that are up"):
                choose(problem, size)
        return
    best = max(local_by_networkx(problem, gang) for gang in combinations(able, size))
    chosen = gangs.most_covering(problem, size)
    assert local_by_networkx(problem, chosen) >= (1 - 1 / np.e) * best
    quota = gangs.quota_rows(problem, size)
    plain: list[int] = []
    for _ in range(size):

        def worth(node: int, so_far: Sequence[int] = tuple(plain)) -> tuple[int, int, int]:
            covered = {shard for shard, held in enumerate(holders_of(problem)) if {*held} & {*so_far, node}}
            return (
                flow_by_networkx(problem, [*so_far, node], quota),
                sum(int(problem.shard_rows[shard]) for shard in covered),
                -node,
            )

        plain.append(max((node for node in able if node not in plain), key=worth))
    assert chosen == sorted(plain)
    racks = sorted((np.bincount(problem.rack[able])).tolist(), reverse=True)
    for choose in (gangs.most_covering, gangs.spread, gangs.rack_packed):
        gang = choose(problem, size)
        assert len(set(gang)) == size and set(gang) <= set(able)
    packed = len(set(problem.rack[gangs.rack_packed(problem, size)].tolist()))
    assert sum(racks[:packed]) >= size and sum(racks[: packed - 1]) < size, "as few racks as can be"
    wide = len(set(problem.rack[gangs.spread(problem, size)].tolist()))
    assert wide == min(size, sum(count > 0 for count in racks)), "as many racks as can be"


def test_one_box_is_the_largest_and_then_the_fullest() -> None:
    problem = problem_of([[0], [1], [1], [2]], [1, 4, 4], [1.0] * 3, [0] * 3, [5] * 4, set())
    assert gangs.one_box(problem) == [1]


def test_spread_gangs_cover_what_the_formula_says_and_packed_ones_less() -> None:
    """1,000 nodes in 25 racks, HDFS's rule: 1 - (1 - q)^3 spread; a block lies in two racks only, so whole racks cover less."""
    problem = synthetic.hdfs(20_000, 1000, seed=3)
    total = int(problem.shard_bytes.sum())
    shares = {
        choose.__name__: gangs.covered_bytes(problem, choose(problem, 120)) / total
        for choose in (gangs.spread, gangs.rack_packed, gangs.most_covering)
    }
    drawn = np.random.default_rng(0).permutation(1000)[:120].tolist()
    at_random = gangs.covered_bytes(problem, drawn) / total
    assert at_random == pytest.approx(1 - (1 - 0.12) ** 3, abs=0.02)
    assert shares["rack_packed"] < at_random - 0.05
    assert at_random < shares["spread"] <= shares["most_covering"]


def written_by_one(shards: int) -> Problem:
    """HDFS's rule for a client on node 0: one replica there, two on two nodes of the other rack. Nodes 0 to 4, and 5 to 9."""
    holders = [[0, 5 + shard % 5, 5 + (shard + 1 + shard // 5 % 4) % 5] for shard in range(shards)]
    return problem_of(holders, [1] * 10, [1.0] * 10, [0] * 5 + [1] * 5, [1] * shards, set())


def test_where_one_node_wrote_everything_the_gang_is_not_filled_up_with_its_neighbours_that_hold_nothing() -> None:
    """The writer covers all there is, and trains on a quarter of it all the same."""
    problem = written_by_one(400)
    chosen = gangs.most_covering(problem, 4)
    assert chosen[0] == 0 and min(chosen[1:]) >= 5
    assert gangs.local_rows(problem, chosen) == 400
    assert gangs.local_rows(problem, [0, 1, 2, 3]) == 100, "what the coverage alone would be content with"


def test_half_of_the_nodes_use_all_that_they_cover() -> None:
    """A node holds half as much again as its share, so that each can leave to others what only they could use."""
    problem = synthetic.hdfs(20_000, 200, seed=3)
    chosen = gangs.most_covering(problem, 100)
    held = np.isin(problem.replica_nodes, chosen)
    covered = int(problem.shard_rows[np.unique(problem.owner[held])].sum())
    assert gangs.local_rows(problem, chosen) > 0.999 * covered
    assert covered > (1 - 0.5**3) * int(problem.shard_rows.sum()), "more than nodes at random"
