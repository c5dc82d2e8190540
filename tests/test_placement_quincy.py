"""Rack and energy tiers: the cheapest assignment equals networkx's; without OR-tools or time, a bound that holds."""

from __future__ import annotations

from dataclasses import replace

import networkx as nx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datalocal.placement import family, mincost, quincy, synthetic
from datalocal.placement.model import Tier
from datalocal.placement.problem import Problem
from datalocal.placement.quincy import Priced, Tariff
from datalocal.placement.vet import vet
from tests.test_placement_flow import problems, tight


def cheapest_by_networkx(problem: Problem, capacity: np.ndarray, tariff: Tariff) -> int:
    """One arc from every shard to every node, with the price of that very placement."""
    graph = nx.DiGraph()
    graph.add_node("sink", demand=problem.shards)
    for shard in range(problem.shards):
        graph.add_node(("shard", shard), demand=-1)
        low, high = problem.replica_offsets[shard : shard + 2]
        holders = [node for node in problem.replica_nodes[low:high].tolist() if problem.alive[node]]
        racks = set(problem.rack[holders].tolist())
        for node in np.flatnonzero(capacity).tolist():
            far = 0 if node in holders else tariff.rack if problem.rack[node] in racks else tariff.off_rack
            own = 0 if tariff.node is None else int(tariff.node[node])
            graph.add_edge(("shard", shard), ("node", node), weight=far + own)
    for node in np.flatnonzero(capacity).tolist():
        graph.add_edge(("node", node), "sink", capacity=int(capacity[node]), weight=0)
    cost, _ = nx.network_simplex(graph)
    return int(cost)


def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Solve in this process: a thousand processes would take minutes."""
    monkeypatch.setattr(quincy, "solve", lambda graph, timeout_s: mincost.solve_here(graph))


def missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mincost, "installed", lambda: False)


TARIFFS = st.builds(
    lambda rack, more, own: (rack, rack + more, own),
    st.integers(1, 3),
    st.integers(0, 4),
    st.none() | st.lists(st.integers(0, 6), min_size=8, max_size=8),
)


def tariff_of(problem: Problem, drawn: tuple[int, int, list[int] | None]) -> Tariff:
    rack, off_rack, own = drawn
    return Tariff(rack=rack, off_rack=off_rack, node=None if own is None else np.array(own[: problem.nodes]))


def tiers(seed: int) -> Tariff:
    """A tariff without prices of nodes that the seed stands for."""
    rack, more = np.random.default_rng(seed).integers([1, 0], [4, 5]).tolist()
    return Tariff(rack=rack, off_rack=rack + more)


def check_cost(problem: Problem, slack: float, tariff: Tariff) -> float:
    """The cost, which is networkx's."""
    makespan_s = problem.least_makespan() * slack
    found = quincy.quincy(problem, makespan_s, tariff=tariff)
    vet(problem, found.answer)
    assert found.cost == cheapest_by_networkx(problem, problem.capacity(makespan_s), tariff)
    assert found.gap == 0
    assert not found.unsolved
    return found.cost


def test_the_cost_is_that_of_networkx(monkeypatch: pytest.MonkeyPatch) -> None:
    here(monkeypatch)

    @settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
    @given(problem=problems(), slack=st.sampled_from([1.0, 1.3]), drawn=TARIFFS)
    def equal(problem: Problem, slack: float, drawn: tuple[int, int, list[int] | None]) -> None:
        check_cost(problem, slack, tariff_of(problem, drawn))

    equal()
    costly = sum(check_cost(tight(seed), 1.0, tiers(seed)) > 0 for seed in range(100))
    assert costly > 60, f"too easy: {costly} of 100 cost something"


def check_bound(problem: Problem, slack: float, tariff: Tariff) -> float:
    """The gap that is said where nothing solves exactly; the optimum lies within it."""
    makespan_s = problem.least_makespan() * slack
    found = quincy.quincy(problem, makespan_s, tariff=tariff)
    vet(problem, found.answer)
    best = cheapest_by_networkx(problem, problem.capacity(makespan_s), tariff)
    assert found.bound <= best <= found.cost
    assert "not installed" in found.unsolved
    assert "not known to be the cheapest" in found.answer.notes[0]
    return found.gap


def test_without_or_tools_the_bound_is_below_the_optimum_and_the_gap_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    missing(monkeypatch)

    @settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
    @given(problem=problems(), slack=st.sampled_from([1.0, 1.3]), drawn=TARIFFS)
    def bounded(problem: Problem, slack: float, drawn: tuple[int, int, list[int] | None]) -> None:
        check_bound(problem, slack, tariff_of(problem, drawn))

    bounded()
    exact = sum(check_bound(tight(seed), 1.0, tiers(seed)) == 0 for seed in range(100))
    assert exact > 20, "with tiers only, the two cuts are often the answer"


def test_a_process_of_its_own_gives_the_same_and_is_killed_when_time_is_up() -> None:
    problem = synthetic.hdfs(3000, 60, writers_skew=0.8, nodes_per_rack=10, seed=1)
    problem = replace(problem, slots=np.arange(60) % 2)
    makespan_s = problem.least_makespan()
    found = quincy.quincy(problem, makespan_s)
    assert not found.unsolved
    assert found.answer.policy == "quincy"
    assert (
        0
        < found.cost
        <= quincy.cost(problem, family.optimal_bytes(problem, makespan_s), Tariff(), quincy.weights(problem))
    )
    late: Priced = quincy.quincy(problem, makespan_s, timeout_s=0.001)
    assert "not done after 0.001 s" in late.unsolved
    assert late.bound <= found.cost <= late.cost


def test_equal_shards_are_solved_as_one_vertex_with_the_same_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    here(monkeypatch)
    problem = synthetic.ring(2000, 20, nodes_per_rack=4, seed=1)
    problem = replace(problem, slots=(np.arange(20) % 5 < 2).astype(np.int64))
    grouped = quincy.quincy(problem)
    parts = quincy.Parts.of(problem, quincy.weights(problem))
    assert len(parts.starts) - 1 == 20
    vet(problem, grouped.answer)
    monkeypatch.setattr(quincy, "runs", lambda *_: (np.arange(problem.shards), np.arange(problem.shards + 1)))
    assert quincy.quincy(problem).cost == grouped.cost > 0


def test_rack_tiers_are_worth_giving_up_node_locality() -> None:
    problem = synthetic.hdfs(5000, 100, writers_skew=0.5, nodes_per_rack=10, seed=1)
    problem = replace(problem, slots=(np.random.default_rng(2).permutation(100) < 10).astype(np.int64))
    makespan_s = problem.least_makespan()
    tiered, local = quincy.quincy(problem, makespan_s).answer, family.optimal_bytes(problem, makespan_s)
    assert tiered.local < local.local
    assert (tiered.tier == Tier.OFF_RACK).sum() < (local.tier == Tier.OFF_RACK).sum()
