"""Policies that decide during the run: the rule alone, the rule in simulated time, and what analysis says of delays."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datalocal.errors import PlacementError
from datalocal.placement import family, synthetic
from datalocal.placement.choosers import Pick
from datalocal.placement.model import Tier
from datalocal.placement.online import Online, run
from datalocal.placement.pending import Pending
from datalocal.placement.problem import Problem, Reason, assigned
from datalocal.placement.rules import (
    RULES,
    DaskDefault,
    DaskReplicas,
    Rule,
    SparkDelay,
    YarnDelay,
    rule_from_json,
    rule_to_json,
)
from datalocal.placement.vet import vet
from tests.test_placement_flow import holders_of, problem_of, problems

ANY_RULE = st.one_of(
    st.builds(DaskDefault, saturation=st.sampled_from([1.0, 1.1, 2.0])),
    st.just(DaskReplicas()),
    st.builds(SparkDelay, wait_s=st.sampled_from([0.0, 0.3, 3.0])),
    st.builds(YarnDelay, misses=st.none() | st.integers(0, 9), rack_misses=st.none() | st.integers(0, 9)),
)


@settings(deadline=None)
@given(rule=ANY_RULE)
def test_a_rule_survives_its_json(rule: Rule) -> None:
    assert rule_from_json(rule_to_json(rule)) == rule


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    rule=ANY_RULE,
    problem=problems(),
    history=st.lists(st.tuples(st.sampled_from(["done", "done", "fail", "lose", "wait"]), st.integers(0, 10**6))),
)
def test_whatever_happens_every_shard_runs_once_at_a_time_and_all_are_done_in_the_end(
    rule: Rule, problem: Problem, history: list[tuple[str, int]]
) -> None:
    state = Online(rule, problem)
    alive = set(np.flatnonzero(problem.rate > 0).tolist())
    running: dict[int, int] = {}
    done: set[int] = set()
    now_s = 0.0

    def start(picks: list[Pick]) -> None:
        for shard, node, _, _ in picks:
            assert shard not in running and shard not in done
            assert node in alive
            running[shard] = node
            assert list(running.values()).count(node) <= max(2.0, 2 * problem.slots[node])

    start(state.begin(now_s))
    endless = iter([*history, *[("done", 0), ("wait", 0)] * 10_000])
    while len(done) < problem.shards:
        what, number = next(endless)
        now_s += 0.1
        if what == "lose" and len(alive) > 1:
            node = sorted(alive)[number % len(alive)]
            alive.discard(node)
            orphans = [shard for shard, where in running.items() if where == node]
            for shard in orphans:
                del running[shard]
            start(state.lost(node, orphans, now_s))
        elif what == "wait" or not running:
            if state.wake_s is not None:
                now_s = max(now_s, state.wake_s)
            start(state.tick(now_s))
        else:
            shard = sorted(running)[number % len(running)]
            node = running.pop(shard)
            if what == "fail":
                start(state.failed(shard, node, now_s))
            else:
                done.add(shard)
                start(state.ended(node, now_s))
    assert not running and not state.waiting


def test_nobody_left_is_an_error_that_says_how_many_wait() -> None:
    problem = problem_of([[0], [1]], [1, 1], [1.0, 1.0], [0, 0], [5, 5], set())
    state = Online(DaskReplicas(), problem)
    state.begin(0.0)
    state.lost(0, [0], 1.0)
    with pytest.raises(PlacementError, match="2 shards wait"):
        state.lost(1, [1], 2.0)


def test_a_task_that_failed_goes_to_another_node_and_a_strict_one_to_another_holder() -> None:
    for rule, holders, node in ((DaskReplicas(), [0, 2], 2), (DaskDefault(), [0], 1)):
        state = Online(rule, problem_of([holders], [1, 1, 1], [1.0] * 3, [0] * 3, [5], set()))
        assert [pick.node for pick in state.begin(0.0)] == [0]
        assert [pick.node for pick in state.failed(0, 0, 1.0)] == [node]


def test_dask_default_goes_to_the_least_busy_and_fills_each_worker_by_its_saturation() -> None:
    problem = problem_of([[0]] * 10, [1, 2], [1.0, 1.0], [0, 0], [5] * 10, set())
    state = Online(DaskDefault(), problem)
    begun = [(pick.shard, pick.node) for pick in state.begin(0.0)]
    assert begun == [(0, 0), (1, 1), (2, 1), (3, 0), (4, 1)]  # by tasks / threads: 0, 0, 1/2, 1, 1; full at 2 and 3
    assert [(pick.shard, pick.node) for pick in state.ended(1, 1.0)] == [(5, 1)]


def test_dask_replicas_keeps_to_the_holders_and_an_idle_one_steals_from_the_busiest() -> None:
    holders = [[0], [0], [0], [0, 1], [0, 1], [2], [2]]
    problem = problem_of(holders, [1, 1, 1], [1.0, 1.0, 0.1], [0] * 3, [5] * 7, set())
    ran = run(DaskReplicas(), problem)
    assert all(int(node) in held for node, held in zip(ran.node, holders, strict=True))
    assert np.bincount(ran.node).tolist() == [3, 2, 2]
    stolen = run(DaskReplicas(), problem_of([[0, 1]] * 10, [1, 1], [1.0, 9.0], [0, 0], [5] * 10, set()))
    assert np.bincount(stolen.node).tolist() == [1, 9], (
        "sent half and half; the fast one took what the slow one had left"
    )


def test_a_thief_takes_from_the_longest_queue() -> None:
    holders = [[0], [1], [2], [2], [2], [0, 2], [1, 2], [1]]
    state = Online(DaskReplicas(), problem_of(holders, [1, 1, 1], [1.0] * 3, [0] * 3, [5] * 8, set()))
    assert [pick.shard for pick in state.begin(0.0)] == [0, 1, 2]
    assert [pick.shard for _ in range(3) for pick in state.ended(2, 1.0)] == [3, 4, 6], "1 has two waiting, 0 has one"


def test_a_strict_task_that_failed_waits_for_its_other_holder_though_somebody_else_is_idle() -> None:
    state = Online(DaskReplicas(), problem_of([[0, 2], [2]], [1, 1, 1], [1.0] * 3, [0] * 3, [5] * 2, set()))
    assert [(pick.shard, pick.node) for pick in state.begin(0.0)] == [(0, 0), (1, 2)]
    assert state.failed(0, 0, 1.0) == []
    assert [(pick.shard, pick.node) for pick in state.ended(2, 2.0)] == [(0, 2)]


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(problem=problems(), history=st.lists(st.tuples(st.booleans(), st.integers(0, 10**6)), max_size=30))
def test_what_waits_is_counted_as_it_is_whatever_is_taken_and_closed(
    problem: Problem, history: list[tuple[bool, int]]
) -> None:
    pending = Pending(problem)
    held, waits = holders_of(problem), set(range(problem.shards))
    open_ = set(np.flatnonzero(problem.rate > 0).tolist())
    for take, number in [*history, (True, 0)]:
        if take and waits:
            shard = sorted(waits)[number % len(waits)]
            waits.discard(shard)
            pending.take(shard)
        elif not take:
            open_.discard(number % problem.nodes)
            pending.close(number % problem.nodes)
        racks = {int(problem.rack[node]) for node in open_}
        up = {shard: [node for node in held[shard] if problem.alive[node]] for shard in waits}
        assert pending.count == len(waits)
        assert pending.local == sum(bool(open_.intersection(nodes)) for nodes in up.values())
        assert pending.rack_local == sum(
            bool(racks.intersection(problem.rack[nodes].tolist())) for nodes in up.values()
        )


def test_spark_waits_3_s_for_each_level_and_says_so() -> None:
    # Node 0 holds everything and is slow; 1 is in its rack, 2 is not.
    problem = problem_of([[0]] * 9, [1, 1, 1], [0.01, 1.0, 1.0], [0, 0, 1], [5] * 9, set())
    state = Online(SparkDelay(), problem)
    assert [(pick.node, pick.why) for pick in state.begin(0.0)] == [(0, Reason.WAITED)]
    assert state.wake_s == 3.0
    assert state.tick(2.9) == []
    (near,) = state.tick(3.0)
    assert (near.node, near.words) == (1, "its holders were busy for 3 s")
    assert state.wake_s == 6.0
    (far,) = state.tick(6.0)
    assert (far.node, far.words) == (2, "its holders were busy for 3 s, and their racks for 3 s more")
    assert [pick.node for pick in state.ended(1, 6.5)] == [1], "the wait is over until all idle nodes found local work"


def test_spark_without_a_wait_leaves_nobody_idle() -> None:
    problem = synthetic.hdfs(2000, 20, writers_skew=1.0, nodes_per_rack=5, seed=1)
    assert run(SparkDelay(wait_s=0.0), problem).idle_node_seconds == 0
    patient = run(SparkDelay(wait_s=1e6), problem)
    assert patient.idle_node_seconds > 0
    assert family.optimal_bytes(problem, None).local == 2000
    assert all(node in held for node, held in zip(patient.node.tolist(), holders_of(problem), strict=True))


def test_yarn_lets_d_opportunities_pass_and_counts_idle_heartbeats() -> None:
    problem = problem_of([[0]] * 9, [1, 1, 1], [0.01, 1.0, 1.0], [0, 0, 1], [5] * 9, set())
    state = Online(YarnDelay(misses=3, rack_misses=4), problem)
    assert [pick.node for pick in state.begin(0.0)] == [0]  # 1 and 2 were asked in vain: 2 misses
    assert state.wake_s == 1.0  # 2 idle nodes: one heartbeat makes it 4
    (near,) = state.tick(1.0)
    assert near.node == 1 and near.words.startswith("its holders were busy while 4 offers")


@pytest.mark.parametrize(("nodes", "replication"), [(20, 1), (20, 3), (50, 3)])
def test_what_is_not_local_under_delay_scheduling_falls_exponentially_with_the_opportunities_passed_over(
    nodes: int, replication: int
) -> None:
    """One shard on a busy cluster: nodes come free in random order, so D of them in vain has (1 - R / M)^D (EuroSys 2010, 4.1)."""
    draw = np.random.default_rng(5)
    trials = 1500
    problem = problem_of([list(range(replication))], [1] * nodes, [1.0] * nodes, [0] * nodes, [5], set())
    for misses in (0, 5, 10, 20):
        away = 0
        for _ in range(trials):
            chooser = Online(YarnDelay(misses=misses), problem)._chooser
            picks = (chooser.offer(int(node), 0.0) for node in draw.integers(nodes, size=1000))
            pick = next(pick for pick in picks if pick is not None)
            away += pick.node >= replication
        share = (1 - replication / nodes) ** (misses + 1)
        assert abs(away / trials - share) < 5 * np.sqrt(share * (1 - share) / trials), misses


def test_the_longer_the_delay_the_more_is_local_and_the_longer_nodes_idle() -> None:
    problem = synthetic.hdfs(4000, 40, writers_skew=0.8, nodes_per_rack=10, seed=2)
    ran = [run(SparkDelay(wait_s=wait_s), problem) for wait_s in (0.0, 1.0, 10.0)]
    local = [(assigned(problem, each.node, policy="x", makespan_s=1e9).local) for each in ran]
    assert local == sorted(local) and local[0] < local[-1]
    idle = [each.idle_node_seconds for each in ran]
    assert idle == sorted(idle) and idle[0] < idle[-1]


@pytest.mark.parametrize("name", list(RULES))
def test_in_simulated_time_a_rule_answers_with_reasons_and_within_the_capacity_that_is_asked_for(name: str) -> None:
    problem = synthetic.three_speeds(3000, 60, nodes_per_rack=10, workers=0.7, seed=4)
    for makespan_s in (None, problem.least_makespan(), problem.least_makespan() * 1.1):
        answer = family.placing(name)(problem, makespan_s, 0)
        vet(problem, answer)
        assert "simulated time" in answer.notes[0]
        away = answer.reason[answer.tier != Tier.NODE_LOCAL]
        assert Reason.HOLDERS_WITHOUT_SLOTS in away
        if name == "spark-delay":
            assert Reason.WAITED in away
        if name == "dask-replicas" and makespan_s is None:
            assert set(away.tolist()) == {Reason.HOLDERS_WITHOUT_SLOTS}


def test_dask_default_is_local_by_chance_and_shares_the_work_by_speed() -> None:
    problem = synthetic.three_speeds(20_000, 100, nodes_per_rack=10, seed=1)
    answer = family.placing("dask-default")(problem, None, 0)
    share = 3 / 100
    assert abs(answer.local / 20_000 - share) < 5 * np.sqrt(share * (1 - share) / 20_000)
    load = np.bincount(answer.node, minlength=100)
    assert np.abs(load / problem.speed - 20_000 / problem.speed.sum()).max() <= 2


def test_with_erasure_coding_nothing_is_local_and_with_a_replica_everywhere_everything_is() -> None:
    coded = problem_of([[]] * 30, [1] * 5, [1.0] * 5, [0, 0, 1, 1, 1], [5] * 30, set())
    everywhere = replace(synthetic.hdfs(200, 7, replication=7, nodes_per_rack=3, seed=1))
    for name in (*RULES, "hdfs-greedy", "rack-aware", "optimal-bytes", "optimal-makespan"):
        none = family.placing(name)(coded, None, 0)
        vet(coded, none)
        assert none.local == 0 and set(none.reason.tolist()) == {Reason.NO_REPLICA}
        assert family.placing(name)(everywhere, None, 0).local == 200
