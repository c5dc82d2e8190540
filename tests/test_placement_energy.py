"""Energy: the makespan of least joules, exact where OR-tools is there, bounded where it is not; not always the most local one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datalocal.errors import PlacementError
from datalocal.placement import energy, family, mincost, quincy, synthetic
from datalocal.placement.arrays import from_catalog
from datalocal.placement.certificate import gap
from datalocal.placement.problem import Power, Problem, assigned
from datalocal.placement.vet import vet
from tests.test_placement_flow import problem_of, problems
from tests.test_placement_policies import catalog, cluster


@pytest.fixture
def _solved_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quincy, "solve", lambda graph, timeout_s: mincost.solve_here(graph))


def powered(problem: Problem, seed: int) -> Problem:
    """Even seeds: nodes of several kinds; odd ones: nodes alike, that idle for so little that waiting beats moving."""
    draw = np.random.default_rng(seed)
    idle = draw.integers(1, 50, size=problem.nodes).astype(np.float64)
    power = Power(idle_watts=idle, busy_watts=idle + draw.integers(0, 900, size=problem.nodes))
    if seed % 2:
        flat = np.full(problem.nodes, 0.1 * (seed % 5))
        power = Power(idle_watts=flat, busy_watts=flat + 10 * problem.slots * problem.speed)
    return replace(problem, power=power, shard_bytes=problem.shard_bytes * 10**9)


@pytest.mark.usefixtures("_solved_here")
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(problem=problems(), seed=st.integers(0, 99))
def test_no_makespan_of_a_grid_needs_fewer_joules_and_none_is_below_the_bound(problem: Problem, seed: int) -> None:
    problem = powered(problem, seed)
    found = energy.search(problem)
    vet(problem, found.answer)
    assert not found.unsolved
    _, certificate = family.certified_optimal_bytes(problem, found.answer.makespan_s)
    assert gap(problem, certificate, found.answer).shards >= 0
    first = problem.least_makespan()
    for slack in (1.0, 1.07, 1.3, 1.9, 3.1, 6.0, 12.0, 40.0):
        other = quincy.quincy(problem, first * slack, tariff=energy._tariff(problem)).answer
        assert found.joules <= energy.joules(problem, other) * (1 + 1e-5)
        assert found.at_least <= energy.joules(problem, other) * (1 + 1e-9)
    assert found.at_least <= found.joules * (1 + 1e-9)


@pytest.mark.usefixtures("_solved_here")
def test_where_idling_is_cheap_and_the_wire_is_not_everybody_waits_for_the_one_that_holds_the_data() -> None:
    problem = problem_of([[0]] * 10, [1, 1], [1.0, 1.0], [0, 1], [5 * 10**9] * 10, set())
    watts = np.ones(2)
    problem = replace(problem, power=Power(idle_watts=watts, busy_watts=watts))
    found = energy.search(problem)
    assert found.joules == pytest.approx(20)
    assert (found.answer.makespan_s, found.answer.local) == (10, 10)
    early = energy.energy(problem, 6.0)
    assert early.makespan_s <= 6 and early.local == 6
    assert "at a makespan of at most 6" in early.notes[0]
    free = replace(problem, power=Power(idle_watts=watts * 0, busy_watts=watts * 0))
    assert energy.search(free, 6.0).gap == float("inf"), "nothing is a bound that moving four shards does not reach"


@pytest.mark.usefixtures("_solved_here")
def test_the_fewest_joules_are_neither_at_the_shortest_makespan_nor_with_every_shard_local() -> None:
    problem = synthetic.three_speeds(4000, 40, nodes_per_rack=10, seed=1)
    found = energy.search(problem)
    local = family.optimal_bytes(problem, None)
    assert local.local == 4000 > found.answer.local
    assert found.answer.makespan_s > problem.least_makespan()
    assert found.joules < energy.joules(problem, local)
    shortest = quincy.quincy(problem, None, tariff=energy._tariff(problem)).answer
    assert found.joules < energy.joules(problem, shortest)
    assert found.gap < 0.01


def test_without_or_tools_a_heuristic_says_how_far_it_may_be_from_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    problem = synthetic.three_speeds(4000, 40, nodes_per_rack=10, seed=1)
    monkeypatch.setattr(mincost, "installed", lambda: False)
    found = energy.search(problem)
    vet(problem, found.answer)
    assert "not installed" in found.unsolved
    assert 0 < found.gap < 0.02
    answer = family.placing("energy")(problem, problem.least_makespan() * 1.01, 0)
    assert answer.makespan_s <= problem.least_makespan() * 1.01
    assert any("heuristic" in note for note in answer.notes)


def test_joules_are_work_and_wire_and_idling() -> None:
    problem = replace(
        synthetic.hdfs(2, 2, replication=1, nodes_per_rack=1, seed=0),
        replica_nodes=np.array([0, 0], dtype=np.int32),
        power=Power(idle_watts=np.array([10.0, 20.0]), busy_watts=np.array([110.0, 70.0])),
    )
    answer = assigned(problem, np.array([0, 1]), policy="x", makespan_s=3.0)
    wire = synthetic.BLOCK_BYTES * energy.OFF_RACK_JOULES_PER_BYTE
    assert energy.joules(problem, answer) == pytest.approx(100 + 50 + wire + 3 * 30)


def test_watts_come_from_the_cluster_config_and_a_shared_host_is_divided_among_its_nodes() -> None:
    plain = cluster(4, compute=0)
    plain = plain.model_copy(
        update={"power": None, "nodes": tuple(node for node in plain.nodes if node.role == "storage")}
    )
    found = catalog([(10, ("node0",))], [node.name for node in plain.nodes])
    with pytest.raises(PlacementError, match="watts") as refused:
        family.placing("energy")(from_catalog(found, plain), None, 0)
    assert "idle_watts" in refused.value.hint
    told = plain.model_validate({**plain.model_dump(), "power": {"idle_watts": 100, "busy_watts": 300}})
    power = from_catalog(found, told).power
    assert power is not None and power.idle_watts.tolist() == [25.0] * 4
    apart = from_catalog(found, told.model_copy(update={"shared_host": False})).power
    assert apart is not None and apart.busy_watts.tolist() == [300.0] * 4
