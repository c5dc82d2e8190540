"""Figures of mixing: what they are at their ends, between them, and of shuffles whose answer is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from datalocal.placement.epochs import Schedule
from datalocal.placement.gang import EpochPlan, RankShare, RankSlot, Segment
from datalocal.placement.mixing import changed_share, label_distance, mixing, mixture_entropy, moved, rows_read
from datalocal.placement.shuffles import LOCAL, shuffle_named
from datalocal.report import page, text
from datalocal.report.mixture import in_words, mixing_figures
from tests.test_placement_rotation import Case, cases, schedule, spread, world
from tests.test_placement_rotation import changed_share as changed_by_hand
from tests.test_report_build import local_arm, report_of
from tests.test_report_page import printed

COUNTS = st.lists(st.integers(0, 50), min_size=2, max_size=6)
TABLES = st.integers(1, 5).flatmap(
    lambda n: st.lists(st.lists(st.integers(0, 9), min_size=n, max_size=n), min_size=n, max_size=n)
)


@given(COUNTS, st.integers(1, 7))
def test_equal_shares_are_at_distance_zero_whatever_their_number(counts: list[int], times: int) -> None:
    assume(sum(counts))
    assert label_distance([times * count for count in counts], counts) == pytest.approx(0, abs=1e-12)


@given(st.data(), COUNTS)
def test_the_rarest_label_alone_is_the_farthest_there_is(data: st.DataObject, whole: list[int]) -> None:
    assume(sum(whole))
    counts = data.draw(st.lists(st.integers(0, 50), min_size=len(whole), max_size=len(whole)))
    assume(sum(counts))
    alone = [int(label == int(np.argmin(whole))) for label in range(len(whole))]
    farthest = label_distance(alone, whole)
    assert farthest == pytest.approx(1 - min(whole) / sum(whole))
    assert 0 <= label_distance(counts, whole) <= farthest + 1e-12
    assert label_distance(counts, whole) == pytest.approx(label_distance(whole, counts))


def test_a_histogram_without_samples_is_refused() -> None:
    with pytest.raises(ValueError, match="without samples"):
        label_distance([0, 0], [1, 1])


@given(TABLES)
def test_share_and_entropy_stay_between_zero_and_one(rows: list[list[int]]) -> None:
    table = np.array(rows, dtype=np.float64)
    assert 0 <= changed_share(table) <= 1
    assert 0 <= mixture_entropy(table) <= 1


@given(st.integers(2, 9), st.data())
def test_exchanging_places_changes_everything_and_mixes_nothing(ranks: int, data: st.DataObject) -> None:
    shift = data.draw(st.integers(1, ranks - 1))
    swap = np.roll(np.eye(ranks) * 7, shift, axis=1)
    assert (changed_share(swap), mixture_entropy(swap)) == (1, 0)
    assert (changed_share(np.eye(ranks)), mixture_entropy(np.eye(ranks))) == (0, 0)
    even = np.ones((ranks, ranks))
    assert changed_share(even) == pytest.approx(1 - 1 / ranks)
    assert mixture_entropy(even) == pytest.approx(1)


@settings(max_examples=60, deadline=None)
@given(cases(), st.integers(0, 2**32 - 1), st.sampled_from([("rotate", None), ("partial", 0.4), ("global", None)]))
def test_every_sample_of_an_epoch_was_somewhere_in_the_one_before(
    case: Case, seed: int, chosen: tuple[Any, Any]
) -> None:
    made = schedule(case, shuffle_named(chosen[0], seed, chosen[1]), batch=4)
    plans = [work.plan for work in made.epochs]
    table = moved(plans[0], plans[1], row_by_row=chosen[0] == "global")
    assert table.sum(axis=1) == pytest.approx([share.samples for share in plans[0].shares])
    assert table.sum(axis=0) == pytest.approx([share.samples for share in plans[1].shares])
    same = moved(plans[0], EpochPlan(steps=1, shares=plans[0].shares))
    assert changed_share(same) == 0, "an equal plan changes nothing, also where row groups are divided"


def test_undivided_row_groups_change_as_counted_by_hand() -> None:
    case = world(spread(8, 160, 3), 8, 10)
    plans = [work.plan for work in schedule(case, shuffle_named("rotate", 1), batch=80).epochs]
    whole = [all(s.samples == 10 for share in plan.shares for s in share.segments) for plan in plans]
    assert all(whole), "the case is meant to divide evenly"
    assert changed_share(moved(plans[0], plans[1])) == pytest.approx(changed_by_hand(plans[0], plans[1]))


def planned(made: Schedule, groups: dict[str, list[int]], *, row_by_row: bool = False) -> list[Any]:
    return mixing(((work.epoch, work.plan) for work in made.epochs), groups, row_by_row=row_by_row)


def test_shuffles_are_ordered_as_their_names_promise() -> None:
    """16 ranks, one replica in three on each; global tends to the bounds 1 - 1/16 and 1, local is at 0."""
    case = world(spread(16, 320, 3), 16, 20)
    groups = {key: [20] for key in case[0].shards}
    found = {
        name: planned(
            schedule(case, shuffle_named(name, 3, share), batch=160),  # type: ignore[arg-type]  # a Name
            groups,
            row_by_row=name == "global",
        )[-1]
        for name, share in (("local", None), ("partial", 0.1), ("rotate", None), ("global", None))
    }
    share, entropy = ([found[name].changed_share for name in found], [found[name].mixture_entropy for name in found])
    assert share == sorted(share) and entropy == sorted(entropy)
    assert share[0] == entropy[0] == 0
    assert share[1] == pytest.approx(0.19, abs=0.02), "a tenth goes, another one comes back"
    assert share[3] == pytest.approx(1 - 1 / 16, abs=0.01) and entropy[3] > 0.95
    assert [found[name].rows_read / found[name].samples for name in ("local", "rotate")] == [1.0, 1.0]
    assert 10 < found["global"].rows_read / found["global"].samples <= 16, "20 rows over 16 ranks: 11.6 ranks have some"
    assert found["global"].exchanged / found["global"].samples == pytest.approx(1 - 3 / 16, abs=0.02)


def test_a_row_group_is_read_once_by_a_rank_however_often_it_is_cut() -> None:
    pieces = tuple(Segment(shard="s", group=0, start=start, stop=start + 2, sources=()) for start in (0, 6))
    other = (Segment(shard="s", group=0, start=2, stop=6, sources=()),)
    shares = tuple(
        RankShare(slot=RankSlot(rank=rank, node="n", local_rank=rank), segments=own)
        for rank, own in enumerate((pieces, other))
    )
    assert rows_read(EpochPlan(steps=1, shares=shares), {"s": [10]}) == 20


def test_the_first_epoch_is_compared_with_nothing_and_local_epochs_are_alike() -> None:
    made = schedule(world(spread(4, 12, 2), 4, 5), LOCAL, batch=8)
    first, second, _ = planned(made, {f"s{i:05d}": [5] for i in range(12)})
    assert (first.changed_share, first.mixture_entropy) == (None, None)
    assert (second.changed_share, second.mixture_entropy) == (0, 0)


def row(epoch: int, **figures: Any) -> dict[str, Any]:
    plain = {"samples": 8, "rows_read": 12, "exchanged": 2, "changed_share": None, "mixture_entropy": None}
    return {"epoch": epoch, **plain, **figures}


def events(*labels: tuple[int, int, int, list[int]]) -> list[dict[str, Any]]:
    told = [row(0), row(1, changed_share=0.5, mixture_entropy=0.25)]
    return [
        {"type": "launch", "launch": 0, "world": 2},
        {"type": "mixing", "launch": 0, "shuffle": "partial", "exchange": 0.1, "epochs": told},
        *({"type": "labels", "epoch": e, "launch": la, "rank": r, "counts": c} for e, la, r, c in labels),
    ]


def test_the_report_measures_labels_by_rank_and_takes_the_launch_that_ended_the_epoch() -> None:
    figures = mixing_figures(
        events((0, 0, 0, [4, 0]), (0, 0, 1, [0, 4]), (1, 0, 0, [9, 9]), (1, 1, 0, [3, 1]), (1, 1, 1, [1, 3]))
    )
    assert figures is not None
    assert [epoch["label_distance_mean"] for epoch in figures["epochs"]] == [0.5, 0.25]
    assert figures["epochs"][1]["label_distance_by_rank"] == {"0": 0.25, "1": 0.25}
    assert (figures["label_distance_mean"], figures["label_distance_max"]) == (0.375, 0.5)
    assert (figures["changed_share"], figures["mixture_entropy"], figures["read_amplification"]) == (0.5, 0.25, 1.5)
    assert in_words(figures) == (
        "partial 0.1: a rank's labels are 0.38 from those of all ranks on average, 0.50 at most; 50.0 % of the samples change "
        "rank from epoch to epoch (mixture 0.25 of 1); 1.500 rows are read for each that is used"
    )


def test_what_no_rank_told_is_none_and_left_out_of_the_sentence() -> None:
    figures = mixing_figures(events())
    assert figures is not None
    assert figures["label_distance_mean"] is figures["label_distance_max"] is None
    assert "labels" not in in_words(figures)
    assert mixing_figures([{"type": "launch", "launch": 0, "world": 2}]) is None


def test_page_and_terminal_say_how_a_stage_was_mixed_and_the_schema_knows_it() -> None:
    story = local_arm()
    for event in events((0, 0, 0, [4, 0]), (0, 0, 1, [0, 4]))[1:]:
        told = {key: value for key, value in event.items() if key != "type"}
        story.add(event["type"], stage="train", **told)
    report = report_of(story)
    (figures,) = [stage["mixing"] for stage in report["arms"][0]["stages"] if stage["kind"] == "train"]
    assert (figures["ranks"], figures["label_distance_max"]) == (2, 0.5)
    assert "data-local, train: partial 0.1: a rank's labels are 0.50 from those of all ranks" in printed(
        text.render(report), width=300
    )
    html = page.render(report)
    assert "<h2>Shuffle</h2>" in html and "<td>partial 0.1</td>" in html
    assert "<h2>Shuffle</h2>" not in page.render(report_of(local_arm())), "nothing was told"
    (stage,) = [stage for stage in report["arms"][0]["stages"] if stage["kind"] == "train"]
    stage["mixing"]["ranks"] = 1
    assert "<h2>Shuffle</h2>" not in page.render(report), "a single rank has all there is"
