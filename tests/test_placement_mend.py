"""Repair: after every loss and return still an optimum, with no more moves than the cheapest repair there is."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import replace

import networkx as nx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datalocal.errors import PlacementError
from datalocal.placement import family, synthetic
from datalocal.placement.losses import NOT_OPTIMAL, lose, numbers_of, require_without
from datalocal.placement.mend import Mended, Mender
from datalocal.placement.problem import Problem
from datalocal.placement.vet import vet
from tests.test_placement_flow import Count, holders_of, local_by_networkx, problem_of, problems


def fewest_moves(problem: Problem, before: np.ndarray, capacity: np.ndarray) -> int:
    """Moves in the cheapest way to an optimal placement: 10,000 for a shard that is not local, 1 for one that moves."""
    graph = nx.DiGraph()
    graph.add_node("sink", demand=problem.shards)
    holders = holders_of(problem)
    for shard, nodes in enumerate(holders):
        graph.add_node(("shard", shard), demand=-1)
        stays = int(before[shard])
        graph.add_edge(("shard", shard), "anywhere", weight=10_001)
        if stays not in nodes:
            graph.add_edge(("shard", shard), ("node", stays), weight=10_000)
        for node in nodes:
            graph.add_edge(("shard", shard), ("node", node), weight=int(node != stays))
    for node, most in enumerate(capacity.tolist()):
        graph.add_edge("anywhere", ("node", node), weight=0)
        graph.add_edge(("node", node), "sink", capacity=most, weight=0)
    cost, _ = nx.network_simplex(graph)
    return int(cost) % 10_000


def holds(mender: Mender, found: Mended, before: np.ndarray, makespan_s: float) -> None:
    problem, answer = mender.problem, mender.answer
    vet(problem, answer)
    capacity = problem.capacity(makespan_s)
    assert answer.local == local_by_networkx(problem, capacity)
    assert found.non_local == problem.shards - answer.local
    assert (np.flatnonzero(answer.node != before) == found.shard).all()
    assert (before[found.shard] == found.before).all()
    assert (answer.node[found.shard] == found.after).all()
    inside = set(np.flatnonzero(found.cut).tolist())
    enclosed = sum(set(nodes) <= inside for nodes in holders_of(problem))
    assert found.non_local == max(0, enclosed - int(capacity[found.cut].sum()))


def crowded(nodes: int, each: int, spare: int, seed: int) -> tuple[Problem, float]:
    """Nodes of equal capacity that have hardly any room left once one of them is lost, and few replicas: chains are long."""
    dice = np.random.default_rng(seed)
    shards = each * (nodes - 1) - spare
    near = [[int(first), int((first + step) % nodes)] for first, step in zip(
        dice.integers(nodes, size=shards), dice.integers(1, 3, size=shards), strict=True
    )]  # fmt: skip
    rack = (np.arange(nodes) // 3).tolist()
    return problem_of(near, [1] * nodes, [1.0] * nodes, rack, [5] * shards, set()), float(each)


def full() -> st.SearchStrategy[tuple[Problem, float]]:
    return st.builds(crowded, st.integers(4, 8), st.integers(2, 4), st.integers(0, 2), st.integers(0, 10**6))


@st.composite
def any_kind(draw: st.DrawFn) -> tuple[Problem, float]:
    problem = draw(problems())
    return problem, problem.least_makespan() * draw(st.sampled_from([1.2, 1.5, 2.0]))


def repair(problem: Problem, makespan_s: float, order: Iterable[int]) -> tuple[int, int]:
    """Lose up to three nodes and get them back, all checked; losses with chains of moves, and with shards that are not local."""
    chained = proven = 0
    mender = Mender(problem, family.optimal_bytes(problem, makespan_s))
    lost: list[int] = []
    for node in [node for node in order if node < problem.nodes and problem.alive[node]][:3]:
        before = mender.answer.node
        try:
            found = mender.lose(node)
        except PlacementError:
            assert (mender.answer.node == before).all()
            assert int(mender.problem.without(node).capacity(makespan_s).sum()) < problem.shards
            continue
        lost.append(node)
        holds(mender, found, before, makespan_s)
        assert len(found.shard) == fewest_moves(mender.problem, before, mender.problem.capacity(makespan_s))
        chained += len(found.shard) > int((before == node).sum())
        proven += found.non_local > 0
    for node in lost:
        before = mender.answer.node
        found = mender.regain(node)
        holds(mender, found, before, makespan_s)
        assert len(found.shard) == fewest_moves(mender.problem, before, mender.problem.capacity(makespan_s))
    return chained, proven


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(case=full() | any_kind(), order=st.permutations(range(8)))
def test_every_repair_is_optimal_proven_and_moves_as_few_shards_as_can_be(
    case: tuple[Problem, float], order: list[int]
) -> None:
    repair(*case, order)


def test_repairs_that_need_chains_or_leave_shards_not_local_move_as_few_as_can_be() -> None:
    chained = proven = 0
    for seed in range(150):
        dice = np.random.default_rng(seed)
        nodes, each, spare = dice.integers([4, 2, 0], [9, 5, 3]).tolist()
        more = repair(*crowded(nodes, each, spare, seed), dice.permutation(nodes).tolist())
        chained, proven = chained + more[0], proven + more[1]
    assert chained > 40, "chains of moves must be needed often enough to be tested"
    assert proven > 40


def test_long_chains_around_rings_move_as_few_shards_as_can_be() -> None:
    """Many orphans go the same ways one after the other: steps are remembered, taken back and taken again."""
    chained = Count()
    for seed in [*range(20), 143, 169, 181]:  # 15 and the last three need shards that came back counted right
        dice = np.random.default_rng(seed)
        nodes, each = int(dice.integers(8, 20)), int(dice.integers(5, 16))
        plain = synthetic.ring(nodes * each, nodes, replication=int(dice.integers(2, 4)), nodes_per_rack=4, seed=seed)
        problem = replace(plain, slots=dice.integers(1, 6, size=nodes))
        makespan_s = problem.least_makespan() * float(dice.choice([1.1, 1.2, 1.4]))
        mender = Mender(problem, family.optimal_bytes(problem, makespan_s))
        lost = dice.permutation(nodes)[:3].tolist()
        for node in [*lost, *lost]:
            before = mender.answer.node
            back = not mender.problem.alive[node]
            try:
                found = mender.regain(node) if back else mender.lose(node)
            except PlacementError:
                break  # three are too many for some
            holds(mender, found, before, makespan_s)
            assert len(found.shard) == fewest_moves(mender.problem, before, mender.problem.capacity(makespan_s))
            chained.add(len(found.shard) > int((before == node).sum()) > 0)
    assert chained.some >= 15, "chains must be needed"


def test_a_large_repair_moves_little_and_stays_optimal() -> None:
    problem = synthetic.hdfs(20_000, 200, nodes_per_rack=20, seed=2)
    makespan_s = problem.least_makespan() * 1.05
    mender = Mender(problem, family.optimal_bytes(problem, makespan_s))
    orphans = int((mender.answer.node == 7).sum())
    found = mender.lose(7)
    assert orphans <= len(found.shard) <= 3 * orphans
    assert found.non_local == 0
    vet(mender.problem, mender.answer)
    back = mender.regain(7)
    assert len(back.shard) == 0, "nothing is gained by moving shards back"


def test_what_cannot_be_repaired_is_refused_and_changes_nothing() -> None:
    problem = synthetic.hdfs(200, 10, nodes_per_rack=5, seed=2)
    mender = Mender(problem, family.optimal_bytes(problem, problem.least_makespan()))
    before = mender.answer.node
    with pytest.raises(PlacementError, match="find no room within") as caught:
        mender.lose(3)
    assert repr(problem.without(3).least_makespan()) in str(caught.value)
    assert (mender.answer.node == before).all()
    with pytest.raises(PlacementError, match="up already"):
        mender.regain(3)
    with pytest.raises(ValueError, match="starts from an optimum"):
        Mender(problem, family.random(problem, problem.least_makespan(), 1))


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(case=full() | any_kind(), order=st.permutations(range(8)))
def test_what_a_loss_is_said_to_cost_is_what_solving_anew_finds(case: tuple[Problem, float], order: list[int]) -> None:
    problem, makespan_s = case
    lost = [node for node in order if node < problem.nodes and problem.alive[node]][:2]
    answer = family.optimal_bytes(problem, makespan_s)
    ticks = itertools.count()
    found = lose(problem, answer, lost, lambda: float(next(ticks)))
    if not found.each:
        with pytest.raises(PlacementError):
            require_without(problem, lost, makespan_s)
        assert "makespan of at least" in found.reason or "no node is left" in found.reason
        return
    here = problem
    for node, loss in zip(lost, found.each, strict=True):
        here = here.without(node)
        anew, proven = family.certified_optimal_bytes(here, makespan_s)
        assert loss.node == problem.node_names[node]
        assert loss.non_local == here.shards - anew.local
        assert loss.certificate.non_local_at_least == proven.non_local_at_least == loss.non_local
        assert loss.moved_bytes >= loss.certificate.moved_bytes_at_least
        assert loss.moved_bytes == 5 * loss.non_local, "all shards have 5 bytes"
        held = [any(here.alive[holder] for holder in nodes) for nodes in holders_of(here)]
        assert loss.without_replica == held.count(False) <= loss.non_local
        assert loss.changed <= loss.anew_changed, "a repair moves as few as can be"
        assert (loss.repair_seconds, loss.anew_seconds) == (1, 1)
    assert found.problem is not None and (found.problem.alive == here.alive).all()


def test_losses_are_refused_with_names_that_are_near_or_a_makespan_that_would_do() -> None:
    problem = synthetic.hdfs(1000, 100, nodes_per_rack=10, seed=2)
    assert numbers_of(problem, ["node42", "node07"]) == [42, 7]
    for name, told in (
        ("node7", "did you mean node07"),
        ("nod42", "did you mean node42"),
        ("zebra", "node00 to node99"),
    ):
        with pytest.raises(PlacementError, match=told):
            numbers_of(problem, [name])
    with pytest.raises(PlacementError, match="only once"):
        numbers_of(problem, ["node07", "node07"])
    with pytest.raises(PlacementError) as caught:
        require_without(problem, [3, 4], 10.0)
    assert "980 of 1,000" in str(caught.value) and "at least 11.0 s" in str(caught.value)
    require_without(problem, [3, 4], 11.0)
    with pytest.raises(PlacementError, match="no node is left"):
        require_without(problem, list(range(100)), 1e9)
    assert lose(problem, family.random(problem, 12.0, 1), [3], lambda: 0.0).reason == NOT_OPTIMAL
