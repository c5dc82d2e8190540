"""What a report must not say: verdicts on traffic that never was, sums over what is missing, lower bounds as figures."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datalocal.report import view
from datalocal.report.compare import compare
from datalocal.report.verdict import joules_in_words
from tests.stories import NODES, Story, row
from tests.test_report_build import central_arm, local_arm, report_of


def test_a_gang_in_one_process_sends_no_gradients_and_gets_no_verdict() -> None:
    verdict = report_of(local_arm(), central_arm(), executor="inline")["verdict"]
    assert verdict["choice"] == "none"
    assert "gradients" in verdict["sentence"] and "bytes" in verdict["sentence"]
    assert any("--executor dask" in told for told in verdict["because"])
    assert report_of(local_arm(), central_arm())["verdict"]["choice"] == "local"


def test_preprocessing_in_one_process_moves_what_a_cluster_moves() -> None:
    preprocess = Story("data-local").start("preprocess", "preprocess", images=10)
    preprocess.task("preprocess", "s0", "node1", row("input", "node1", "node1", 700))
    preprocess.finish("preprocess", seconds=1.0, images=10).end()
    assert report_of(preprocess, central_arm(), executor="inline")["verdict"]["choice"] == "local"


def test_an_arm_that_loses_by_its_gradients_says_so() -> None:
    heavy = Story("data-local").start("train", "train").epoch(0, {"s0": 2}).launch(0)
    for rank in range(2):
        heavy.rank(0, rank, row("gradients", NODES[rank], NODES[1 - rank], 10**9))
    heavy.finish("train", seconds=1.0, images=2).end()
    verdict = report_of(heavy, central_arm())["verdict"]
    assert verdict["choice"] == "central"
    assert any("2.00 GB of gradients" in told and "central-nas" in told for told in verdict["because"])


def joule_row(
    joules: float | None, component: str = "cpu package-0", reason: str = "", origin: str = ""
) -> dict[str, Any]:
    return {
        "stage": "train", "node": "n", "component": component, "joules": joules, "reason": reason or ("" if joules else "vm"),
        "origin": origin or ("missing" if joules is None else "measured.counter"),
    }  # fmt: skip


def test_a_lower_bound_is_no_figure_to_compare() -> None:
    one = report_of(local_arm())
    two = report_of(local_arm(), id="story-2", seed=8)
    one["arms"][0]["joules"] = [joule_row(100.0)]
    two["arms"][0]["joules"] = [joule_row(7.0, reason="lower bound, 1 gap(s), 5 % of the time covered: lost")]
    (policy,) = compare([one, two])["policies"]
    assert policy["median"]["joules"] == 100.0
    two["arms"][0]["joules"] = [joule_row(7.0), joule_row(None, "gpu GPU-a")]
    (policy,) = compare([one, two])["policies"]
    assert policy["median"]["joules"] == 100.0


rows = st.lists(
    st.builds(
        joule_row,
        st.one_of(st.none(), st.floats(1, 1e9)),
        st.sampled_from(["cpu package-0", "dram package-0", "gpu GPU-a"]),
    ),
    min_size=1,
    max_size=8,
)


@given(rows)
def test_missing_joules_are_never_shown_as_zero(found: list[dict[str, Any]]) -> None:
    arm = {"joules": found}
    known = [row["joules"] for row in found if row["joules"] is not None]
    short = view.joules_short(arm)
    words = joules_in_words(found)
    for text in (short, words, *(cell["text"] for cell in view.joules_cells(arm))):
        assert " 0 J" not in f" {text}"
    assert ("missing" in short) == ("missing" in words) == (len(known) < len(found))
    assert ("measured.counter" in short) == ("measured.counter" in words) == bool(known)


@pytest.mark.parametrize("origin", ["measured.sampled", "assumed"])
def test_measured_and_assumed_joules_are_never_one_figure(origin: str) -> None:
    found = [joule_row(100.0), joule_row(50.0, "host", origin=origin)]
    assert joules_in_words(found) == f"100 J measured.counter, 50 J {origin}"
    short = view.joules_short({"joules": found})
    assert "100 J measured.counter" in short and f"50 J {origin}" in short
