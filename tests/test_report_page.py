"""What people see: terminal and page say the same as the JSON, hold nothing from elsewhere, and escape what users name."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from rich.console import Console

from datalocal.errors import RequestError
from datalocal.ledger.records import Damaged
from datalocal.placement.registry import POLICIES
from datalocal.report import page, text, view
from datalocal.report.compare import compare
from datalocal.report.compare import render as render_comparison
from tests.stories import Story, manifest
from tests.test_report_build import central_arm, local_arm, report_of


def printed(renderable: Any, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture
def report() -> dict[str, Any]:
    """Two arms that completed and one that failed with a trace."""
    failed = Story("central-staged").start("preprocess", "preprocess", images=40)
    failed.add("node_lost", node="node3").end("failed", "disk full on <central1>\n  free some")
    return report_of(local_arm(), central_arm(), failed)


class Outline(HTMLParser):
    """Checks that tags are closed in order, and keeps attributes."""

    void = frozenset({"meta", "br", "link", "img", "input", "hr"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in self.void:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_asks_for_nothing_from_elsewhere(report: dict[str, Any]) -> None:
    html = page.render(report)
    outline = Outline()
    outline.feed(html)
    assert outline.open == []
    assert not {"script", "link", "img", "iframe", "object"} & set(outline.tags)
    assert not {"src", "href", "onclick", "onload"} & {name for name, _ in outline.attributes}
    assert not re.search(r"https?:|url\(|@import", html)
    assert "prefers-color-scheme: dark" in html and "width=device-width" in html


def test_the_page_says_what_the_report_says(report: dict[str, Any]) -> None:
    html = page.render(report)
    assert report["verdict"]["sentence"] in html
    assert "share one physical host" in html
    assert "402 B" in html and "4.20 kB" in html, "bytes off node of both arms"
    assert "no replica on a compute node" in html
    assert "missing: no_meter" in html
    assert "node3 was lost" in html
    assert "1.010" in html, "sockets over theory"
    assert "0.1 %" in html and "2011" in html, "what speaks against the idea"
    assert "mean little" in html or "means little" in html, "accuracy on the demo's crops"


def test_the_page_escapes_what_users_name(report: dict[str, Any]) -> None:
    assert "disk full on &lt;central1&gt;" in page.render(report)
    bad = Damaged(shard="s0", row=1, path="<script>alert(1)</script>.jpg", problem="truncated")
    story = (
        Story("data-local")
        .start("preprocess", "preprocess", images=10)
        .task("preprocess", "s0", "node1", damaged=[bad])
    )
    assert "<script>" not in page.render(report_of(story.end()))


def test_a_page_of_nothing_yet_can_be_read() -> None:
    html = page.render(report_of(Story("data-local"), state="running"))
    assert "nothing to compare" in html


def test_the_terminal_says_what_the_report_says(report: dict[str, Any]) -> None:
    shown = printed(text.render(report), width=400)
    assert report["verdict"]["sentence"] in shown
    for words in (
        "8 of 8 samples, each used once",
        "ratio 1.010",
        "4 shards: no replica on a compute node",
        "disk full",
    ):
        assert words in shown
    assert "missing" in shown and "0 J" not in shown


def test_samples_that_were_not_used_once_are_told() -> None:
    story = Story("data-local").start("train", "train").epoch(0, {"s0": 4}).launch(0, world=1)
    story.samples(0, 0, 0, (0, 2), {"s0": [2, 1, 0, 1]}).checkpoint(0, 0, 2).finish("train", seconds=1.0, images=4)
    shown = printed(text.render(report_of(story.end())), width=200)
    assert "3 of 4 samples, 1 repeated, 1 not used" in shown


def other_run(report: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**report, "run": {**report["run"], **changes}}


def test_runs_of_a_job_are_compared_by_policy(report: dict[str, Any]) -> None:
    second = other_run(report_of(local_arm(), central_arm(size=2000)), id="story-2", seed=8)
    found = compare([report, second])
    nas = next(row for row in found["policies"] if row["policy"] == "central-nas")
    assert (nas["median"]["off_node_bytes"], nas["lowest"]["off_node_bytes"]) == (6200, 4200)
    assert nas["highest"]["off_node_bytes"] == 8200
    assert nas["median"]["joules"] is None
    staged = next(row for row in found["policies"] if row["policy"] == "central-staged")
    assert (staged["completed"], staged["median"]["seconds"]) == (0, None)
    shown = printed(render_comparison(found), width=200)
    assert "6.20 kB (4.20 kB to 8.20 kB)" in shown and "missing" in shown


def test_runs_of_different_jobs_are_refused_with_what_differs(report: dict[str, Any]) -> None:
    job = manifest("data-local")["job"] | {"dataset": "others", "train": {"epochs": 3}}
    with pytest.raises(RequestError, match=r"dataset: photos and others\n  train.epochs: 2 and 3"):
        compare([report, other_run(report, id="story-2", job_spec=job)])


def test_a_run_is_no_repetition_of_itself(report: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="twice"):
        compare([report, report])
    with pytest.raises(RequestError, match="no run"):
        compare([])


def test_what_misses_the_same_thing_for_the_same_reason_is_one_row_and_figures_stay_apart() -> None:
    row: dict[str, Any] = {
        "node": "host",
        "component": "cpu",
        "joules": None,
        "origin": "missing",
        "reason": "no meter",
    }
    known = {**row, "joules": 3.0, "origin": "assumed"}
    other = {**row, "stage": "train", "reason": "the stage did not end"}
    rows = [{**row, "stage": "staging"}, {**known, "stage": "preprocess"}, {**row, "stage": "preprocess"}, other]
    shown = view.joules_rows({"joules": [*rows, {**known, "stage": "train"}]})
    assert [(each["stage"], each["joules"]) for each in shown] == [
        ("staging, preprocess", None),
        ("preprocess", 3.0),
        ("train", None),
        ("train", 3.0),
    ]
    assert rows[0]["stage"] == "staging", "the report itself stays as it is"


def test_many_arms_stand_in_blocks_so_that_no_name_is_broken_in_80_columns() -> None:
    names = list(POLICIES)
    report = report_of(local_arm())
    report["arms"] = [{**report["arms"][0], "policy": name} for name in names]
    printed_lines = printed(text.render(report), width=80).splitlines()
    heads = [line.split() for line in printed_lines if line.split() and set(line.split()) <= set(names)]
    assert [name for line in heads for name in line] == names
    assert 1 < len(heads) < len(names) / 3
    assert all(len(line.rstrip()) <= 80 for line in printed_lines)
