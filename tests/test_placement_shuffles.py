"""Shuffles: every row once in every epoch, as many per rank as without, and what moves is what was asked for."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from datalocal.errors import PlacementError
from datalocal.placement import shuffles
from datalocal.placement.epochs import Progress, Schedule
from datalocal.placement.gang import EpochPlan
from datalocal.placement.model import Assignment
from datalocal.placement.shuffles import LOCAL, Shuffle, shuffle_named
from datalocal.spec.job import Train
from tests import worlds
from tests.test_placement_rotation import Case, cases, schedule, spread, world
from tests.test_runner_inline import arm, moved, run

SHUFFLES = st.one_of(
    st.just(("global", None)), st.floats(0.01, 1.0).map(lambda share: ("partial", share)), st.just(("rotate", None))
)


def uses(plan: EpochPlan) -> Counter[tuple[str, int, int]]:
    return Counter(
        (segment.shard, segment.group, row)
        for share in plan.shares
        for segment in share.segments
        for row in range(segment.start, segment.stop)
    )


def samples(plan: EpochPlan) -> list[int]:
    return [share.samples for share in plan.shares]


def away_from_home(made: Schedule, epoch: int) -> int:
    """Rows that another rank uses than without the shuffle."""
    owner = {
        (segment.shard, segment.group, row): share.slot.rank
        for share in made.epochs[0].plan.shares
        for segment in share.segments
        for row in range(segment.start, segment.stop)
    }
    return sum(
        owner[segment.shard, segment.group, row] != share.slot.rank
        for share in made.epochs[epoch].plan.shares
        for segment in share.segments
        for row in range(segment.start, segment.stop)
    )


@settings(max_examples=80, deadline=None)
@given(cases(), SHUFFLES, st.integers(0, 2**32 - 1))
def test_every_row_is_used_once_and_every_rank_makes_its_steps(
    case: Case, chosen: tuple[Any, float | None], seed: int
) -> None:
    catalog, _, masks = case
    made = schedule(case, shuffle_named(chosen[0], seed, chosen[1]), batch=4)
    rows = {(key, 0, row) for key, mask in masks.items() for row in range(len(mask))}
    for work in made.epochs:
        assert uses(work.plan) == Counter(rows)
        steps = [work.plan.step_samples(step) for step in range(work.plan.steps)]
        even = -(-4 // len(work.plan.shares))
        assert all(count <= even for step in steps for count in step)
        for share in work.plan.shares:
            for segment in share.segments:
                holds = share.slot.node in catalog.replicas(catalog.index(segment.shard))
                assert not (segment.exchanged and holds)
                assert (segment.sources[0] == share.slot.node) == holds
    assert schedule(case, shuffle_named(chosen[0], seed, chosen[1]), batch=4) == made


@settings(max_examples=60, deadline=None)
@given(cases(), st.floats(0.01, 1.0), st.integers(0, 2**32 - 1))
def test_partial_exchanges_the_share_of_every_rank_and_nobody_gets_his_own_back(
    case: Case, share: float, seed: int
) -> None:
    home = schedule(case, LOCAL, batch=4)
    both = Schedule(
        epochs=[*home.epochs, *schedule(case, shuffle_named("partial", seed, share), batch=4).epochs], gang=""
    )
    given_away = [int(share * count + 0.5) for count in samples(home.epochs[0].plan)]
    fullest = max(given_away)
    expected = sum(given_away) - max(0, fullest - (sum(given_away) - fullest))
    for epoch in range(3, 6):
        assert samples(both.epochs[epoch].plan) == samples(both.epochs[0].plan)
        assert away_from_home(both, epoch) == expected


def test_partial_moves_whole_row_groups_and_divides_at_most_one_per_rank_and_one_per_hand_over() -> None:
    case = world(spread(8, 160, 1), 8, 10)
    plan = schedule(case, shuffle_named("partial", 5, 0.1), batch=80).epochs[1].plan
    undivided = schedule(case, LOCAL, batch=80).epochs[0].plan
    pieces = [sum(len(share.segments) for share in each.shares) for each in (undivided, plan)]
    assert pieces[1] <= pieces[0] + 3 * 8
    exchanged = sum(segment.samples for share in plan.shares for segment in share.segments if segment.exchanged)
    assert exchanged == sum(int(0.1 * count + 0.5) for count in samples(undivided)), "one replica: all of it moves"


def test_what_a_rank_holds_a_replica_of_is_exchanged_without_a_byte() -> None:
    case = world([tuple(range(5))] * 40, 5, 10)
    for name, share in (("partial", 0.5), ("global", None)):
        plan = schedule(case, shuffle_named(name, 1, share), batch=20).epochs[0].plan  # type: ignore[arg-type]  # a Name
        assert not any(segment.exchanged for rank in plan.shares for segment in rank.segments)


def test_what_is_read_over_the_network_anyway_is_input_and_not_exchanged() -> None:
    catalog, assignments, masks = world(spread(2, 20, 1), 2, 10)
    central = [
        Assignment(shard=each.shard, node=f"central{number % 2}", sources=each.sources, reason="central")
        for number, each in enumerate(assignments)
    ]
    plan = schedule((catalog, central, masks), shuffle_named("global", 1), batch=20).epochs[0].plan
    assert {share.slot.node for share in plan.shares} == {"central0", "central1"}
    assert not any(segment.exchanged for share in plan.shares for segment in share.segments)


def test_global_deals_every_row_group_evenly_over_the_ranks_in_expectation() -> None:
    """160 groups of 50 rows over 8 ranks: hypergeometric around 6.25 rows each, and another deal in every epoch."""
    case = world(spread(8, 160, 2), 8, 50)
    made = schedule(case, shuffle_named("global", 9), batch=80)
    counts = np.array(
        [
            [sum(s.samples for s in share.segments if s.shard == key) for share in made.epochs[0].plan.shares]
            for key in case[0].shards
        ]
    )
    assert abs(counts.mean(axis=0) - 6.25).max() < 1
    assert 1.9 < counts.std() < 2.7, "sqrt(50 x 1/8 x 7/8) = 2.34"
    assert made.epochs[0].plan != made.epochs[1].plan
    assert all(work.row_by_row for work in made.epochs)


@pytest.mark.parametrize(("name", "share"), [("partial", 0.3), ("global", None)])
def test_the_same_gang_goes_on_within_its_epoch_and_another_deals_what_is_left(name: Any, share: float | None) -> None:
    case = world(spread(6, 40, 2), 6, 10)
    shuffle = shuffle_named(name, 3, share)
    whole = schedule(case, shuffle)
    used = {key: np.arange(10) < 4 for key in case[2]}
    resumed = schedule(case, shuffle, progress=Progress(epoch=1, step=2, epoch_done=False, used=used, gang=whole.gang))
    assert [(work.epoch, work.start_step, work.plan) for work in resumed.epochs] == [
        (1, 2, whole.epochs[1].plan),
        (2, 0, whole.epochs[2].plan),
    ]
    other = schedule(case, shuffle, progress=Progress(epoch=1, step=2, epoch_done=False, used=used, gang="another"))
    assert (other.epochs[0].first_step, other.epochs[0].row_by_row) == (2, shuffle.row_by_row)
    assert uses(other.epochs[0].plan) == Counter((key, 0, row) for key in case[2] for row in range(6))
    gangs = {whole.gang, schedule(case, shuffle_named(name, 4, share)).gang, schedule(case, LOCAL).gang}
    assert len(gangs) == 3


def test_global_over_too_many_row_groups_and_ranks_is_refused_with_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shuffles, "MOST_SEGMENTS", 100)
    with pytest.raises(PlacementError, match=r"400 rows of 40 row groups over 6 ranks.*\n?.*`rotate` or `partial`"):
        schedule(world(spread(6, 40, 2), 6, 10), shuffle_named("global", 1))


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"shuffle": "partial"}, "needs `exchange`"),
        ({"shuffle": "rotate", "exchange": 0.1}, "belongs to `shuffle: partial`, not to `rotate`"),
        ({"exchange": 0.1}, "belongs to `shuffle: partial`, not to `local`"),
        ({"shuffle": "partial", "exchange": 0}, "greater than 0"),
        ({"shuffle": "partial", "exchange": 1.5}, "less than or equal to 1"),
        ({"shuffle": "partial(0.1)"}, "write `shuffle: partial` and `exchange: 0.1`"),
        ({"shuffle": "full"}, "'local', 'rotate', 'partial' or 'global'"),
    ],
)
def test_a_shuffle_that_means_nothing_is_refused(keys: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says.replace("(", r"\(").replace(")", r"\)")):
        Train.model_validate({"model": "m:m", **keys})


@pytest.mark.parametrize(("name", "share"), [("partial", 0.25), ("global", None)])
def test_a_run_counts_its_exchange_and_uses_every_sample_once_an_epoch(
    tmp_path: Path, name: str, share: float | None
) -> None:
    cluster = worlds.cluster_file(tmp_path, storage=4, replication=1)
    worlds.fill(tmp_path / "home", cluster, worlds.image_folder(tmp_path / "images", 120))
    train = {"shuffle": name, "epochs": 3} | ({"exchange": share} if share else {})
    job = worlds.job_file(tmp_path / "job", preprocess=False, train=train)
    code, report = run(tmp_path / "home", job, cluster, "data-local", "central-nas", run_id="shuffling")
    assert code == 0, report
    local, central = arm(report, "data-local"), arm(report, "central-nas")
    for each in (local, central):
        (stage,) = each["stages"]
        counted = stage["samples"]
        assert (counted["seen"], counted["repeated"], counted["dropped"]) == (counted["expected"], 0, 0)
    (stage,) = local["stages"]
    mixing = stage["mixing"]
    assert (mixing["shuffle"], mixing["exchange"], mixing["ranks"]) == (name, share, 4)
    assert [sorted(epoch["label_distance_by_rank"]) for epoch in mixing["epochs"]] == [["0", "1", "2", "3"]] * 3
    assert all(0 <= epoch["label_distance_max"] <= 1 for epoch in mixing["epochs"])
    assert 0 < mixing["mixture_entropy"] <= 1 <= mixing["read_amplification"]
    assert moved(local, "exchange") > 0
    assert {row["tier"] for row in local["bytes"] if row["class"] == "exchange"} == {"rack_local", "off_rack"}
    assert moved(central, "exchange") == 0, "what is read over the network anyway is input"
    figures = local["headline_bytes"]
    assert figures["input"] - figures["input_local"] >= moved(local, "exchange"), "the exchange is no local read"


def test_names_are_those_of_the_spec() -> None:
    for name in ("local", "rotate", "partial", "global"):
        made = shuffle_named(name, 1, 0.1 if name == "partial" else None)
        assert isinstance(made, Shuffle) and made.every_epoch_alike == (name == "local")
        assert Train(model="m:m", shuffle=name, exchange=0.1 if name == "partial" else None).shuffle == made.name
