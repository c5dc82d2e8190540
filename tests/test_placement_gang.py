"""Gangs: every selected row exactly once, the same number of steps on every rank, and as little moved as can be."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datalocal.errors import PlacementError
from datalocal.placement.division import plan_epoch
from datalocal.placement.gang import EpochPlan, RankSlot
from datalocal.placement.model import Assignment

Case = tuple[list[Assignment], dict[str, list[int]], list[RankSlot], int]


def slots(*ranks_on_node: int) -> list[RankSlot]:
    places = [(f"node{n}", local) for n, count in enumerate(ranks_on_node) for local in range(count)]
    return [RankSlot(rank=rank, node=node, local_rank=local) for rank, (node, local) in enumerate(places)]


def local(shard: str, *nodes: int) -> Assignment:
    names = tuple(f"node{n}" for n in nodes)
    return Assignment(shard=shard, node=names[0], sources=names)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    nodes = draw(st.integers(1, 5))
    gang = slots(*(draw(st.integers(1, 3)) for _ in range(nodes)))
    assignments, selected = [], {}
    for number in range(draw(st.integers(1, 8))):
        key = f"s{number}"
        held = draw(st.lists(st.integers(0, nodes - 1), min_size=1, max_size=3, unique=True))
        if draw(st.booleans()):
            assignments.append(local(key, *held))
        else:
            away = Assignment(
                shard=key, node=f"node{draw(st.integers(0, nodes - 1))}", sources=("store",), reason="far"
            )
            assignments.append(away)
        selected[key] = draw(st.lists(st.integers(0, 40), max_size=4))
    selected.setdefault("s0", []).append(draw(st.integers(1, 5)))
    return assignments, selected, gang, draw(st.integers(1, 40))


def uses(plan: EpochPlan, selected: dict[str, list[int]]) -> dict[tuple[str, int], list[int]]:
    counts = {(key, group): [0] * rows for key, groups in selected.items() for group, rows in enumerate(groups)}
    for share in plan.shares:
        for segment in share.segments:
            assert segment.start < segment.stop
            for row in range(segment.start, segment.stop):
                counts[segment.shard, segment.group][row] += 1
    return counts


def remote_rows(plan: EpochPlan) -> int:
    return sum(seg.samples for share in plan.shares for seg in share.segments if seg.sources[0] != share.slot.node)


@given(case=cases())
@settings(max_examples=300, deadline=None)
def test_every_selected_row_is_used_exactly_once(case: Case) -> None:
    plan = plan_epoch(*case)
    assert all(set(counts) <= {1} for counts in uses(plan, case[1]).values())


@given(case=cases())
@settings(max_examples=300, deadline=None)
def test_every_rank_makes_the_same_steps_and_none_is_above_its_batch(case: Case) -> None:
    _, selected, gang, batch = case
    plan = plan_epoch(*case)
    total = sum(map(sum, selected.values()))
    assert plan.steps == -(-total // batch)
    assert [share.slot for share in plan.shares] == gang
    even = batch // len(gang)
    for share in plan.shares:
        assert even * (plan.steps - 1) <= share.samples <= (even + 1) * plan.steps
        assert share.samples <= even * plan.steps or share.samples >= (even + 1) * (plan.steps - 1) or batch % len(gang)
    steps = [plan.step_samples(step) for step in range(plan.steps)]
    assert [sum(rank) for rank in zip(*steps, strict=True)] == [share.samples for share in plan.shares]
    assert all(sum(step) <= batch + len(gang) for step in steps)
    assert all(rank <= even + (1 if batch % len(gang) else 0) for step in steps for rank in step)


@given(case=cases())
@settings(max_examples=300, deadline=None)
def test_at_most_ranks_minus_one_row_groups_are_divided_further(case: Case) -> None:
    assignments, selected, gang, batch = case
    plan = plan_epoch(assignments, selected, gang, batch)
    groups = sum(1 for rows in selected.values() for count in rows if count)
    assert sum(len(share.segments) for share in plan.shares) <= groups + len(gang) - 1
    assert plan == plan_epoch(list(reversed(assignments)), dict(reversed(selected.items())), gang[::-1], batch)


@given(case=cases())
@settings(max_examples=300, deadline=None)
def test_what_is_within_bounds_stays_where_it_is(case: Case) -> None:
    assignments, selected, _, batch = case
    gang = slots(*([1] * len({slot.node for slot in case[2]})))
    home = {assignment.shard: assignment.node for assignment in assignments}
    plan = plan_epoch(assignments, selected, gang, batch)
    natural = {slot.node: 0 for slot in gang}
    for key, rows in selected.items():
        natural[home[key]] += sum(rows)
    even, rest = divmod(batch, len(gang))
    by_load = sorted(gang, key=lambda slot: (-natural[slot.node], slot.rank))
    bounds = {
        slot.node: ((even + (place < rest)) * (plan.steps - 1), (even + (place < rest)) * plan.steps)
        for place, slot in enumerate(by_load)
    }
    above = sum(max(0, count - bounds[node][1]) for node, count in natural.items())
    below = sum(max(0, bounds[node][0] - count) for node, count in natural.items())
    moved = sum(
        segment.samples for share in plan.shares for segment in share.segments if home[segment.shard] != share.slot.node
    )
    if not above and not below:
        assert moved == 0
    assert moved >= max(above, below)


@given(case=cases())
@settings(max_examples=300, deadline=None)
def test_ranks_that_need_not_go_together_read_nothing_over_the_network_that_lies_on_their_node(case: Case) -> None:
    assignments, selected, gang, batch = case
    plan = plan_epoch(*case, together=False)
    assert all(set(counts) <= {1} for counts in uses(plan, selected).values())
    far = sum(sum(selected[a.shard]) for a in assignments if a.node not in a.sources)
    assert remote_rows(plan) == far
    together = plan_epoch(*case)
    assert plan.steps >= together.steps
    even = batch // len(gang)
    if even:
        assert all(share.samples <= (even + 1) * plan.steps for share in plan.shares), "no step above the batch"
    loads, others = sorted(share.samples for share in plan.shares), sorted(share.samples for share in together.shares)
    assert loads[-1] >= others[-1] - together.steps and loads[0] <= others[0] + together.steps
    if remote_rows(together) == far == sum(map(sum, selected.values())):
        assert max(loads) - min(loads) <= together.steps + batch, "what comes over the network anyway is divided evenly"


def test_validation_is_evened_out_between_holders_and_no_further() -> None:
    held = [local("a", 0, 1), local("b", 0)]
    plan = plan_epoch(held, {"a": [40], "b": [60]}, slots(1, 1, 1), 30, together=False)
    assert [share.samples for share in plan.shares] == [60, 40, 0] and plan.steps == 6
    plan = plan_epoch(held, {"a": [40], "b": [60]}, slots(1, 1, 1), 30)
    assert [share.samples for share in plan.shares] == [40, 30, 30] and remote_rows(plan) > 0
    far = [Assignment(shard="c", node="node0", sources=("store",), reason="far"), local("b", 0)]
    plan = plan_epoch(far, {"c": [60], "b": [30]}, slots(1, 1, 1), 30, together=False)
    assert sorted(share.samples for share in plan.shares) == [30, 30, 30] and remote_rows(plan) == 60


@given(case=cases(), each=st.integers(1, 9))
@settings(max_examples=200, deadline=None)
def test_no_row_more_than_must_be_goes_over_the_network(case: Case, each: int) -> None:
    """Checked against an independent linear program over everything that could be read where."""
    _, selected, gang, _ = case
    assignments = [
        Assignment(shard=a.shard, node=a.node, sources=(a.node, *(n for n in a.sources if n != a.node)))
        for a in case[0]
    ]
    held = {a.shard: set(a.sources) for a in assignments}
    plan = plan_epoch(assignments, selected, gang, each * len(gang))
    rows = {key: sum(counts) for key, counts in selected.items() if sum(counts)}
    assert remote_rows(plan) == _fewest_remote(rows, held, gang, each * (plan.steps - 1), each * plan.steps)
    assert all(segment.sources[0] in held[segment.shard] for share in plan.shares for segment in share.segments)


def _fewest_remote(rows: dict[str, int], held: dict[str, set[str]], gang: list[RankSlot], low: int, high: int) -> int:
    """Rows read over the network at least, when every rank has between `low` and `high`."""
    from scipy.optimize import linprog

    shards = sorted(rows)
    # Columns: rows of shard s that rank r reads from its own node, then rows that rank r reads over the network.
    reads = [(s, r) for s in range(len(shards)) for r in range(len(gang)) if gang[r].node in held[shards[s]]]
    columns = len(reads) + len(gang)
    above, limits = [], []
    for s, key in enumerate(shards):
        above.append([float(s == one) for one, _ in reads] + [0.0] * len(gang))
        limits.append(rows[key])
    for r in range(len(gang)):
        load = [float(r == rank) for _, rank in reads] + [float(r == rank) for rank in range(len(gang))]
        above += [load, [-one for one in load]]
        limits += [high, -low]
    found = linprog(
        [0.0] * len(reads) + [1.0] * len(gang),
        A_ub=above,
        b_ub=limits,
        A_eq=[[1.0] * columns],
        b_eq=[sum(rows.values())],
    )
    assert found.success
    return round(float(found.fun))


def test_the_excess_goes_to_replica_holders_before_it_goes_over_the_network() -> None:
    assignments = [local("a", 0, 2), local("b", 1)]
    plan = plan_epoch(assignments, {"a": [60, 60], "b": [50]}, slots(1, 1, 1), 30)
    assert remote_rows(plan) == 0
    assert [share.samples for share in plan.shares] == [60, 50, 60]
    moved = plan.shares[2].segments[0]
    assert moved.sources == ("node2", "node0")


def test_a_node_that_nobody_can_hand_replicas_to_reads_over_the_network() -> None:
    plan = plan_epoch([local("a", 0), local("b", 0)], {"a": [50], "b": [50]}, slots(1, 1), 10)
    assert [share.samples for share in plan.shares] == [50, 50]
    assert remote_rows(plan) == 50
    assert sum(len(share.segments) for share in plan.shares) == 2


def test_local_ranks_of_a_node_divide_its_rows_among_themselves() -> None:
    plan = plan_epoch([local("a", 0), local("b", 1)], {"a": [100], "b": [100]}, slots(2, 2), 8)
    assert [share.samples for share in plan.shares] == [50, 50, 50, 50]
    assert remote_rows(plan) == 0


def test_fewer_rows_than_ranks_leave_some_ranks_without_samples() -> None:
    plan = plan_epoch([local("a", 0)], {"a": [2]}, slots(1, 1, 1), 64)
    assert plan.steps == 1
    assert plan.samples == 2
    assert min(share.samples for share in plan.shares) == 0


def test_a_batch_below_the_number_of_ranks_gives_some_ranks_nothing() -> None:
    plan = plan_epoch([local("a", 0), local("b", 1)], {"a": [5], "b": [4]}, slots(1, 1), 1)
    assert plan.steps == 9
    assert sorted(share.samples for share in plan.shares) == [0, 9]


@given(case=cases())
@settings(max_examples=100, deadline=None)
def test_what_a_node_is_told_is_its_own_part_and_how_much_the_others_do(case: Case) -> None:
    plan = plan_epoch(*case)
    parts = plan.by_node()
    assert set(parts) == {slot.node for slot in case[2]}
    for node, part in parts.items():
        assert [(share.slot, share.samples) for share in part.shares] == [(s.slot, s.samples) for s in plan.shares]
        assert all(part.step_samples(step) == plan.step_samples(step) for step in range(plan.steps))
        mine = [share for share in plan.shares if share.slot.node == node]
        assert [share for share in part.shares if share.slot.node == node] == mine
        told = [segment for share in part.shares if share.slot.node != node for segment in share.segments]
        assert len(told) <= 1
        assert any(share.segments for share in part.shares), "an image to know the shape of"
        assert bool(told) <= any(not share.segments for share in mine)


def test_an_epoch_without_rows_is_refused_with_numbers() -> None:
    with pytest.raises(PlacementError, match="0 rows from 2 shards, 1 ranks"):
        plan_epoch([local("a", 0)], {"a": [0], "b": []}, slots(1), 4)


def test_an_assignment_without_a_rank_on_its_node_is_named() -> None:
    with pytest.raises(PlacementError, match="a is assigned to node1"):
        plan_epoch([local("a", 1)], {"a": [3]}, slots(1), 4)
    with pytest.raises(PlacementError, match="no node is assigned"):
        plan_epoch([local("a", 0)], {"b": [3]}, slots(1), 4)
