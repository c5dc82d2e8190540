"""The simulated executor: queues, disks and shared uplinks worked out by hand, by laws, and at the size it is made for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datalocal.errors import PlacementError
from datalocal.estimate.arms import Work, place, run
from datalocal.estimate.bottleneck import bottleneck
from datalocal.estimate.presets import build
from datalocal.estimate.simulation import Gang, Machines, finish_times, max_min, simulate
from datalocal.placement import synthetic
from datalocal.placement.family import placing
from datalocal.placement.model import Tier
from datalocal.placement.problem import ROLES, Assigned, Problem, Reason, assigned
from datalocal.placement.replicas import kept_shards
from datalocal.spec.preset import Preset, load_preset

PRESETS = sorted((Path(__file__).resolve().parent.parent / "cluster-configs" / "presets").glob("*.yaml"))


def machines(
    problem: Problem, *, link: float = 1e9, disk: float | None = None, uplink: float | None = None
) -> Machines:
    return Machines(
        link_bytes_per_second=np.full(problem.nodes, link),
        disk_bytes_per_second=None if disk is None else np.full(problem.nodes, disk),
        uplink_bytes_per_second=uplink,
    )


def on(problem: Problem, *node: int) -> Assigned:
    return assigned(problem, np.array(node), policy="by-hand", makespan_s=1e9, why=Reason.NOT_ASKED)


def by_hand(sizes: list[int], holders: list[int], racks: list[int], *, slots: int = 1) -> Problem:
    """A shard per size, each on one holder; every node does a shard a second and slot."""
    plain = synthetic.hdfs(len(sizes), len(racks), replication=1, nodes_per_rack=1, slots=slots)
    return replace(
        plain,
        shard_bytes=np.array(sizes, dtype=np.int64),
        shard_rows=np.full(len(sizes), 10, dtype=np.int64),
        replica_nodes=np.array(holders, dtype=np.int32),
        rack=np.array(racks, dtype=np.int32),
        rack_names=synthetic.numbered("rack", max(racks) + 1),
    )


def test_a_node_works_through_its_queue_on_its_slots() -> None:
    problem = by_hand([100] * 5, [0] * 5, [0, 0], slots=2)
    assert simulate(problem, on(problem, 0, 0, 0, 0, 0), machines(problem)).seconds == 3.0
    assert simulate(problem, on(problem, 0, 0, 0, 0, 0), machines(problem), epochs=4).seconds == 12.0


def test_reading_hides_behind_computing_but_for_the_first_shard() -> None:
    problem = by_hand([100] * 4, [0] * 4, [0, 0])
    fast = simulate(problem, on(problem, 0, 0, 0, 0), machines(problem, disk=1000.0))
    assert fast.seconds == pytest.approx(4.1) and fast.bottleneck == "compute"
    away = simulate(problem, on(problem, 1, 1, 1, 1), machines(problem, link=1000.0))
    assert away.seconds == pytest.approx(4.1) and away.bottleneck == "compute"
    slow = simulate(problem, on(problem, 0, 0, 0, 0), machines(problem, disk=50.0))
    assert slow.seconds == pytest.approx(4 * 2 + 1) and slow.bottleneck == "disk"


def test_who_serves_others_is_later_by_what_that_takes_its_disk() -> None:
    problem = by_hand([100] * 4, [0] * 4, [0, 0])
    away = simulate(problem, on(problem, 0, 0, 1, 1), machines(problem, disk=50.0))
    assert away.seconds == pytest.approx(8 + 1), "node 0 reads two shards for itself and two for the other"
    assert away.serving_seconds == pytest.approx(4.0)


def test_who_serves_others_over_its_link_while_it_reads_itself_is_later_by_that_too() -> None:
    """Node 0 reads one shard over its link and sends four: 40 s, where nobody needs more than 20 to read."""
    problem = by_hand([100] * 5, [3, 0, 0, 0, 0], [0, 0, 0, 0])
    found = simulate(problem, on(problem, 0, 1, 1, 2, 2), machines(problem, link=10.0))
    assert found.seconds == pytest.approx(40 + 1) and found.bottleneck == "network"
    assert found.serving_seconds == pytest.approx(41 - (20 + 1))


def test_an_uplink_is_shared_by_all_that_leave_the_rack() -> None:
    problem = by_hand([100] * 4, [0, 1, 0, 1], [0, 0, 1, 1])
    answer = on(problem, 2, 3, 2, 3)
    free = simulate(problem, answer, machines(problem, link=100.0))
    assert free.network_seconds == pytest.approx(2.0)
    tight = simulate(problem, answer, machines(problem, link=100.0, uplink=40.0))
    assert tight.network_seconds == pytest.approx(400 / 40)


def test_flows_that_end_make_room_for_others() -> None:
    """Two flows of 10 and 30 leave one rack with 10 a second: 2 s together, then the longer one has it alone."""
    one = np.ones(2)
    ends = finish_times(
        np.array([10.0, 30.0]), one, np.array([0, 0]), np.array([1, 2]), np.full(3, 10.0), np.full(3, 10.0)
    )
    assert ends.tolist() == [2.0, 4.0]


def test_flows_that_share_nothing_end_when_they_would_alone() -> None:
    places, sizes = np.arange(9), np.arange(1.0, 10.0) ** 2
    ends = finish_times(sizes, np.ones(9), places, places, np.full(9, 2.0), np.full(9, 4.0))
    assert ends == pytest.approx(sizes / 2)


flows = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 4), st.floats(0.1, 10), st.floats(1, 1000)), min_size=1, max_size=30
)
limits = st.lists(st.floats(0.5, 100), min_size=5, max_size=5)


@settings(deadline=None)
@given(flows, limits, limits)
def test_rates_are_max_min_fair(
    found: list[tuple[int, int, float, float]], ups: list[float], downs: list[float]
) -> None:
    """No place gives more than it has, and every flow is held back by a full place on which nobody has more for its weight."""
    sender, reader = (np.array([flow[side] for flow in found]) for side in (0, 1))
    weights, up, down = np.array([flow[2] for flow in found]), np.array(ups), np.array(downs)
    rate = max_min(weights, sender, reader, up, down)
    for places, room in ((sender, up), (reader, down)):
        assert (np.bincount(places, weights=rate, minlength=5) <= room * (1 + 1e-9)).all()
    for flow in range(len(found)):
        held = False
        for places, room in ((sender, up), (reader, down)):
            here = places == places[flow]
            full = rate[here].sum() >= room[places[flow]] * (1 - 1e-9)
            held |= bool(full and (rate[here] / weights[here]).max() <= rate[flow] / weights[flow] * (1 + 1e-9))
        assert held


@settings(deadline=None)
@given(flows, limits, limits)
def test_all_bytes_arrive_and_no_sooner_than_the_busiest_place_allows(
    found: list[tuple[int, int, float, float]], ups: list[float], downs: list[float]
) -> None:
    sender, reader = (np.array([flow[side] for flow in found]) for side in (0, 1))
    weights, sizes = (np.array([flow[part] for flow in found]) for part in (2, 3))
    up, down = np.array(ups), np.array(downs)
    ends = finish_times(sizes, weights, sender, reader, up, down)
    assert (ends > 0).all() and np.isfinite(ends).all()
    for places, room in ((sender, up), (reader, down)):
        least = (np.bincount(places, weights=sizes, minlength=5) / room).max()
        assert ends.max() >= least * (1 - 1e-9)
    alone = np.minimum(up[sender], down[reader])
    assert (ends >= sizes / alone * (1 - 1e-9)).all()


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 200),
    st.integers(2, 30),
    st.integers(0, 2**32 - 1),
    st.sampled_from(["random", "round-robin", "optimal-bytes"]),
)
def test_nothing_is_done_before_the_bound_and_joules_are_idle_plus_busy(
    shards: int, nodes: int, seed: int, policy: str
) -> None:
    problem = synthetic.hdfs(shards, nodes, replication=2, nodes_per_rack=5, seed=seed)
    answer = placing(policy)(problem, problem.least_makespan(), seed)
    using = replace(
        machines(problem, link=2e8, disk=3e8, uplink=4e8),
        idle_watts=np.full(nodes, 100.0),
        busy_watts=np.full(nodes, 300.0),
    )
    found = simulate(problem, answer, using)
    bound = bottleneck(problem, answer, link_bytes_per_second=2e8, uplink_bytes_per_second=4e8)
    assert found.seconds >= bound.seconds * (1 - 1e-9)
    assert found.idle_joules is not None and found.busy_joules is not None
    assert found.busy_joules == pytest.approx(200.0 * found.busy_seconds)
    assert found.idle_joules <= 100.0 * nodes * found.seconds * (1 + 1e-9)
    more = simulate(problem, answer, replace(using, serve_seconds_per_byte=1e-8))
    assert more.seconds >= found.seconds


def test_a_gang_steps_as_slowly_as_computing_and_its_ring_let_it() -> None:
    problem = by_hand([100] * 4, [0, 1, 2, 3], [0, 0, 1, 1])
    gang = Gang(gradient_bytes=1000, batch=20, gamma=1.0)
    found = simulate(problem, on(problem, 0, 1, 2, 3), machines(problem, link=1000.0), gang=gang)
    ring = 2 * 3 / 4 * 1000 / 1000.0
    assert found.sync_seconds == pytest.approx(2 * ring)
    assert found.seconds == pytest.approx(1.0 + 2 * ring)
    assert found.gradient_bytes == {Tier.RACK_LOCAL: 2 * 3 * 1000, Tier.OFF_RACK: 2 * 3 * 1000}


# Ways of working


def both_sides() -> tuple[Problem, Machines]:
    groups = [
        {
            "name": "d",
            "count": 40,
            "rack_nodes": 10,
            "slots": 1,
            "images_per_second": 100,
            "link_gbit": 1,
            "disk_mbyte": 200,
        },
        {"name": "g", "count": 2, "role": "compute", "slots": 20, "images_per_second": 100, "link_gbit": 1},
    ]
    return build(
        Preset.model_validate({"name": "two", "description": "", "groups": groups, "shards": 2000, "shard_rows": 1000})
    )


def test_central_arms_work_on_the_compute_nodes_and_wait_for_their_link() -> None:
    problem, using = both_sides()
    total = int(problem.shard_bytes.sum())
    arms = {
        name: run(problem, *place(problem, name, None, 0), using, Work(epochs=3, output_share=0.1))
        for name in ("optimal-bytes", "central-nas", "central-staged", "reduce-then-ship")
    }
    local, nas, staged, reduced = arms.values()
    assert set(np.unique(nas.answer.node)) == {40, 41} == set(np.unique(staged.answer.node))
    assert (local.answer.node < 40).all() and (reduced.answer.node < 40).all()
    assert nas.simulated.bottleneck == "network" and local.simulated.bottleneck == "compute"
    assert nas.simulated.seconds > 3 * total / 2 / 125e6
    assert sum(size for (_, tier), size in nas.bytes.items() if tier != Tier.NODE_LOCAL) == 3 * total
    assert sum(size for (class_, _), size in staged.bytes.items() if class_ == "staging") == total
    shipped = sum(size for (class_, _), size in reduced.bytes.items() if class_ == "output")
    assert shipped == pytest.approx(0.1 * total, rel=1e-6)
    assert staged.simulated.seconds < nas.simulated.seconds
    once = run(problem, *place(problem, "reduce-then-ship", None, 0), using, Work(output_share=0.1))
    central_pass = 2000 * 1000 / (40 * 100)
    assert reduced.simulated.seconds == pytest.approx(once.simulated.seconds + 3 * central_pass, rel=0.05)
    assert nas.slot_seconds == pytest.approx(40 * nas.simulated.seconds)
    assert reduced.slot_seconds == pytest.approx(40 * reduced.simulated.seconds, rel=0.01), "both sides have 40 slots"


def test_shipping_what_was_not_reduced_takes_as_long_as_the_links_of_those_who_get_it() -> None:
    problem, using = both_sides()
    found = run(problem, *place(problem, "reduce-then-ship", None, 0), using, Work(output_share=1.0))
    each = int(problem.shard_bytes.sum()) / 2
    assert found.simulated.seconds == pytest.approx(each / 125e6, rel=0.01)
    assert found.simulated.bottleneck == "network"


def test_a_staged_copy_is_written_before_it_is_read() -> None:
    """Two compute nodes with disks of 50 MB/s, slower than their links: half of the data each, first written and then read."""
    problem, using = both_sides()
    assert using.disk_bytes_per_second is not None
    slow = replace(
        using, disk_bytes_per_second=np.where(problem.role == ROLES.index("compute"), 50e6, using.disk_bytes_per_second)
    )
    found = run(problem, *place(problem, "central-staged", None, 0), slow, Work())
    each = int(problem.shard_bytes.sum()) / 2
    assert found.simulated.seconds == pytest.approx(2 * each / 50e6, rel=0.01)
    for share, seconds in ((0.25, each / 125e6), (1.0, each / 50e6)):
        found = run(problem, *place(problem, "central-cached", None, 0), slow, Work(cached_share=share))
        assert found.simulated.seconds == pytest.approx(seconds, rel=0.01), (
            "what is kept is written while the rest comes in"
        )


@settings(max_examples=30, deadline=None)
@given(st.floats(0, 1), st.integers(1, 5))
def test_what_a_cache_keeps_is_read_over_the_network_once_and_the_rest_in_every_epoch(
    share: float, epochs: int
) -> None:
    problem, using = both_sides()
    gang = Gang(gradient_bytes=10**6, batch=5000)
    nas, cached = (
        run(problem, *place(problem, name, None, 0), using, Work(epochs=epochs, gang=gang, cached_share=share))
        for name in ("central-nas", "central-cached")
    )
    kept = int(2000 * share) * int(problem.shard_bytes[0])
    total = int(problem.shard_bytes.sum())
    assert cached.bytes["input", Tier.OFF_RACK] == epochs * total - (epochs - 1) * kept
    assert cached.bytes["input", Tier.NODE_LOCAL] == (epochs - 1) * kept
    gradients = ("gradients", Tier.RACK_LOCAL)
    assert cached.bytes[gradients] == nas.bytes[gradients] > 0
    assert cached.simulated.seconds <= nas.simulated.seconds * (1 + 1e-9)
    if kept == 0 or epochs == 1:
        assert cached.simulated.seconds == pytest.approx(nas.simulated.seconds)
    elif share > 0.1:
        assert cached.simulated.seconds < nas.simulated.seconds


@given(st.integers(0, 200), st.floats(0, 1))
def test_a_cache_keeps_its_share_of_every_beginning(shards: int, share: float) -> None:
    assert np.cumsum(kept_shards(shards, share)).tolist() == [int(n * share) for n in range(1, shards + 1)]


def with_arrays(storage: int) -> tuple[Problem, Machines]:
    """`storage` nodes and two arrays hold 900 shards with one replica each; a central node with 10 GPUs."""
    wires = {"link_gbit": 1, "disk_mbyte": 200}
    groups = [
        {"name": "a", "count": 2, "role": "array", "slots": 0, **wires},
        {"name": "g", "count": 1, "role": "compute", "slots": 10, "images_per_second": 1e4, "link_gbit": 8},
    ]
    groups += [{"name": "d", "count": storage, "slots": 1, **wires}] if storage else []
    return build(
        Preset.model_validate({"name": "san", "description": "", "groups": groups, "shards": 900, "replication": 1})
    )


def test_an_array_is_loaded_with_what_is_not_on_it_and_read_in_every_epoch() -> None:
    problem, using = with_arrays(storage=7)
    elsewhere = int(problem.shard_bytes[problem.role[problem.replica_nodes] != ROLES.index("array")].sum())
    total = int(problem.shard_bytes.sum())
    assert 0.5 < elsewhere / total < 0.95
    found = run(problem, *place(problem, "san", None, 0), using, Work(epochs=3))
    assert set(problem.role[found.problem.replica_nodes]) == {ROLES.index("array")}
    assert sum(size for (class_, _), size in found.bytes.items() if class_ == "staging") == elsewhere
    assert {key: size for key, size in found.bytes.items() if key[0] == "input" and size} == {
        ("input", Tier.OFF_RACK): 3 * total
    }
    served = np.bincount(found.problem.replica_nodes, weights=found.problem.shard_bytes)
    assert found.simulated.seconds >= (elsewhere / 2 + 3 * served.max()) / 125e6
    assert found.simulated.seconds <= 1.1 * (elsewhere / 2 + 3 * served.max()) / 125e6
    assert "does not pay for it" in found.notes[0]


def test_an_array_that_is_down_holds_nothing() -> None:
    problem, using = with_arrays(storage=7)
    down = problem.without(0)
    assert problem.role[0] == ROLES.index("array")
    before, after = (run(each, *place(each, "san", None, 0), using, Work()) for each in (problem, down))
    copied = [sum(found.bytes.get(("staging", tier), 0) for tier in Tier) for found in (before, after)]
    assert copied[1] > copied[0] > 0


def test_data_that_lie_on_an_array_are_not_copied_there() -> None:
    problem, using = with_arrays(storage=0)
    san, nas = (run(problem, *place(problem, name, None, 0), using, Work(epochs=2)) for name in ("san", "central-nas"))
    assert san.bytes == nas.bytes and san.simulated == nas.simulated and not san.notes


def test_without_an_array_nothing_is_read_from_one() -> None:
    with pytest.raises(PlacementError, match="none of the 42 nodes is one that is up"):
        place(both_sides()[0], "san", None, 0)


def test_nodes_that_wait_for_something_else_to_end_idle_until_then() -> None:
    problem, using = both_sides()
    powered = replace(using, idle_watts=np.full(42, 100.0), busy_watts=np.full(42, 300.0))
    found = run(problem, *place(problem, "reduce-then-ship", None, 0), powered, Work(output_share=1.0))
    assert found.simulated.idle_joules == pytest.approx(40 * 100.0 * found.simulated.seconds)


def test_what_is_shipped_has_to_be_said() -> None:
    problem, using = both_sides()
    with pytest.raises(PlacementError, match="nobody said how much"):
        run(problem, *place(problem, "reduce-then-ship", None, 0), using, Work())


def test_without_compute_nodes_there_is_no_central_arm() -> None:
    with pytest.raises(PlacementError, match="none of the 4 nodes is one"):
        place(synthetic.hdfs(10, 4), "central-nas", None, 0)


@pytest.mark.parametrize("file", PRESETS, ids=[file.stem for file in PRESETS])
def test_every_preset_can_be_built_and_run_and_names_its_sources(file: Path) -> None:
    assert "# Sources\n" in file.read_text(encoding="utf-8")
    preset = load_preset(file)
    assert preset.name == file.stem
    problem, using = build(preset, shards=500)
    assert problem.nodes == sum(group.count for group in preset.groups)
    central = problem.role == ROLES.index("compute")
    assert not set(problem.rack[central]) & set(problem.rack[~central]), "compute nodes have racks of their own"
    found = run(problem, *place(problem, "central-nas", None, 0), using, Work())
    assert found.simulated.seconds > 0 and found.simulated.idle_joules


def test_there_are_the_presets_that_people_ask_for() -> None:
    assert {file.stem for file in PRESETS} >= {
        "hadoop-2015",
        "central-k80",
        "dgx",
        "tx1-storage",
        "h200",
        "composable",
    }
