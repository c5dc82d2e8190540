"""What a report says of an arm's history: totals that can be recomputed, samples that count, and nothing invented."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datalocal.ledger.records import Damaged
from datalocal.report.build import build
from datalocal.report.schema import schema, validate
from datalocal.spec.cluster import PowerProfile
from tests.stories import CENTRAL, NODES, Story, cluster, manifest, row


def local_arm(policy: str = "data-local") -> Story:
    """Four shards resized where they lie, then trained on by two ranks for one epoch."""
    story = Story(policy).start("preprocess", "preprocess", images=40)
    for number, node in enumerate(NODES):
        other = NODES[number - 1]
        story.task(
            "preprocess",
            f"s{number}",
            node,
            row("input", node, node, 1000),
            row("output", node, node, 50),
            row("output", node, other, 50),
            outputs=(node, other),
        )
    story.finish("preprocess", seconds=4.0, images=40)
    story.start("train", "train", images=40).epoch(0, {"s0": 4, "s1": 4}).launch(0)
    story.samples(0, 0, 0, (0, 2), {"s0": [1, 1, 1, 1]}).samples(0, 1, 0, (0, 2), {"s1": [1, 1, 1, 1]})
    story.checkpoint(0, 0, 2).validation(0, 0, 0, 3, 4).validation(0, 1, 0, 1, 4)
    figures = {"logical_bytes": 100.0, "payload_bytes": 101.0, "theory_bytes": 100.0, "steps": 2, "step_bytes": 50.0}
    for rank in range(2):
        node, peer = NODES[rank], NODES[1 - rank]
        story.rank(0, rank, row("input", node, node, 50), row("gradients", node, peer, 101), gradients=figures)
    return story.finish("train", seconds=6.0, images=8).end()


def central_arm(policy: str = "central-nas", size: int = 1000) -> Story:
    story = Story(policy).start("preprocess", "preprocess", images=40, nodes=(CENTRAL,))
    for number, node in enumerate(NODES):
        story.task(
            "preprocess",
            f"s{number}",
            CENTRAL,
            row("input", node, CENTRAL, size),
            row("output", CENTRAL, node, 50),
            outputs=(node,),
            reason="no replica on a compute node",
        )
    return story.finish("preprocess", seconds=3.0, images=40).end()


def report_of(*stories: Story, **changes: Any) -> dict[str, Any]:
    state = changes.pop("state", None)
    head = manifest(*(story.policy for story in stories), **changes)
    report = build(head, {story.policy: story.events for story in stories}, state=state)
    validate(report)
    return report


def test_tiers_follow_racks_and_every_total_is_the_sum_of_its_rows() -> None:
    arm = report_of(local_arm())["arms"][0]
    tiers = {(r["source"], r["destination"]): r["tier"] for r in arm["bytes"]}
    assert tiers["node1", "node1"] == "node_local"
    assert tiers["node2", "node1"] == "rack_local"
    assert tiers["node3", "node2"] == "off_rack"
    moved = arm["headline_bytes"]
    assert moved["off_node"] == 4 * 50 + 2 * 101
    assert moved["off_rack"] == 2 * 50
    assert moved["by_class"] == {"gradients": 202, "output": 200}
    assert moved["output_replication"] == 200
    assert moved["input"] == moved["input_local"] == 4100


def test_a_stage_tells_time_images_tasks_and_samples() -> None:
    preprocess, train = report_of(local_arm())["arms"][0]["stages"]
    assert (preprocess["seconds"], preprocess["images"], preprocess["images_per_second"]) == (4.0, 40, 10.0)
    assert preprocess["tasks"] == {"total": 4, "node_local": 4, "rack_local": 0, "off_rack": 0, "retried": 0}
    assert preprocess["samples"] == {"expected": 40, "seen": 40, "repeated": 0, "dropped": 0, "rolled_back": 0}
    assert train["samples"] == {"expected": 8, "seen": 8, "repeated": 0, "dropped": 0, "rolled_back": 0}
    assert train["accuracy"] == 0.5
    assert train["gradients"] == {"logical_bytes": 200, "payload_bytes": 202, "theory_bytes": 200, "ratio": 1.01}


def test_work_done_twice_counts_its_bytes_twice_and_its_images_once() -> None:
    story = Story("data-local").start("preprocess", "preprocess", images=10)
    story.task("preprocess", "s0", "node1", row("input", "node1", "node1", 700))
    story.add(
        "replaced", stage="preprocess", shard="s0", cause="node1 died", attempt=2, **{"from": "node1", "to": "node3"}
    )
    story.task(
        "preprocess", "s0", "node3", row("input", "node2", "node3", 700), attempt=2, reason="its replicas are away"
    )
    arm = report_of(story.finish("preprocess", seconds=1.0, images=10).end())["arms"][0]
    stage = arm["stages"][0]
    assert sum(r["bytes"] for r in arm["bytes"]) == 1400
    assert stage["images"] == 10
    assert stage["samples"]["seen"] == 10 and stage["samples"]["rolled_back"] == 10
    assert stage["tasks"] == {"total": 1, "node_local": 0, "rack_local": 0, "off_rack": 1, "retried": 1}
    assert arm["not_local"] == [{"shard": "s0", "reason": "its replicas are away", "stage": "preprocess"}]
    assert arm["replaced"][0]["cause"] == "node1 died"


def test_damaged_images_are_listed_and_not_produced() -> None:
    bad = Damaged(shard="s0", row=3, path="a.jpg", problem="truncated")
    story = Story("data-local").start("preprocess", "preprocess", images=10)
    story.task("preprocess", "s0", "node1", damaged=[bad])
    arm = report_of(story.finish("preprocess", seconds=1.0, images=9).end())["arms"][0]
    assert arm["stages"][0]["images"] == 9
    assert arm["stages"][0]["samples"]["dropped"] == 0
    assert arm["damaged"] == [{"stage": "preprocess", "shard": "s0", "row": 3, "path": "a.jpg", "problem": "truncated"}]


def test_after_a_rollback_only_the_surviving_line_counts() -> None:
    story = Story("data-local").start("train", "train", images=4).epoch(0, {"s0": 4}).launch(0)
    story.samples(0, 0, 0, (0, 1), {"s0": [1, 0, 0, 0]}).samples(0, 1, 0, (0, 1), {"s0": [0, 1, 0, 0]}).checkpoint(
        0, 0, 1
    )
    story.samples(0, 0, 0, (1, 2), {"s0": [0, 0, 1, 0]})  # the other rank died: its checkpoint was never complete
    story.add("node_lost", node="node2")
    story.add("rolled_back", stage="train", launch=0, epoch=0, from_step=1, to_step=2, samples=2)
    story.launch(1, world=1, checkpoint="l0-e0-s1").samples(1, 0, 0, (1, 3), {"s0": [0, 0, 1, 1]}).checkpoint(1, 0, 3)
    report = report_of(story.finish("train", seconds=9.0, images=4).end())
    stage = report["arms"][0]["stages"][0]
    assert stage["samples"] == {"expected": 4, "seen": 4, "repeated": 0, "dropped": 0, "rolled_back": 2}
    assert stage["launches"] == 2
    assert any("node2 died" in told for told in report["assumptions"])


def test_a_run_that_was_killed_tells_lost_samples_by_its_lines() -> None:
    story = Story("data-local").start("train", "train", images=4).epoch(0, {"s0": 4}).launch(0, world=2)
    story.samples(0, 0, 0, (0, 2), {"s0": [1, 1, 0, 0]})  # killed before the other rank's line came
    story.start("train", "train", images=4).epoch(0, {"s0": 4}).launch(1, world=1)
    story.samples(1, 0, 0, (0, 4), {"s0": [1, 1, 1, 1]}).checkpoint(1, 0, 4)
    stage = report_of(story.finish("train", seconds=3.0, images=4).end())["arms"][0]["stages"][0]
    assert stage["samples"] == {"expected": 4, "seen": 4, "repeated": 0, "dropped": 0, "rolled_back": 2}
    assert stage["seconds"] > 3.0, "the time before the crash counts"


def test_row_groups_that_were_split_between_ranks_are_told() -> None:
    story = Story("data-local").start("train", "train").epoch(0, {"s0": 2}).launch(0, world=1)
    story.rank(0, 0, row("input", "node1", "node1", 900), row("input", "node2", "node1", 100))
    arm = report_of(story.finish("train", seconds=1.0, images=2).end())["arms"][0]
    assert arm["not_local"] == []
    assert [remark.startswith("train: 100 B of 1.00 kB input") for remark in arm["remarks"]] == [True]
    assert arm["stages"][0]["tasks"]["rack_local"] == 1


def test_a_later_launch_validates_an_epoch_again_and_replaces_the_earlier() -> None:
    story = Story("data-local").start("train", "train").epoch(0, {"s0": 2}).launch(0).validation(0, 0, 0, 0, 4)
    story.launch(1, checkpoint="l0-e0-s2").validation(1, 0, 0, 3, 4).validation(1, 1, 0, 4, 4)
    stage = report_of(story.finish("train", seconds=1.0, images=2).end())["arms"][0]["stages"][0]
    assert stage["accuracy"] == 7 / 8


def test_half_a_validation_is_no_accuracy() -> None:
    story = Story("data-local").start("train", "train").epoch(0, {"s0": 2}).launch(0).validation(0, 0, 0, 4, 4)
    assert report_of(story)["arms"][0]["stages"][0]["accuracy"] is None


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_beginning_of_a_history_gives_a_valid_report(data: st.DataObject) -> None:
    story = data.draw(st.sampled_from([local_arm(), central_arm()]))
    del story.events[data.draw(st.integers(0, len(story.events))) :]
    report = report_of(story, state=data.draw(st.sampled_from([None, "failed", "cancelled", "running"])))
    arm = report["arms"][0]
    assert arm["seconds"] >= 0
    assert arm["state"] in {"running", "failed", "cancelled", "completed"}
    for stage in arm["stages"]:
        samples = stage["samples"]
        assert samples["seen"] + samples["dropped"] == samples["expected"]


names = st.sampled_from([*NODES, CENTRAL, "head"])
classes = st.sampled_from(["input", "staging", "exchange", "gradients", "output", "checkpoint", "control"])
byte_rows = st.lists(st.builds(row, classes, names, names, st.integers(1, 10**12)), max_size=12)


@settings(max_examples=60, deadline=None)
@given(st.lists(byte_rows, min_size=1, max_size=4), byte_rows)
def test_headline_is_the_sum_of_rows_however_they_arrive(tasks: list[list[Any]], extra: list[Any]) -> None:
    story = Story("data-local").start("preprocess", "preprocess", images=10 * len(tasks))
    for number, rows in enumerate(tasks):
        story.task("preprocess", f"s{number}", "node1", *rows, outputs=("node1",))
    story.add("bytes", stage="catalog", rows=[r.to_json() for r in extra])
    arm = report_of(story.end())["arms"][0]
    everything = [r for rows in [*tasks, extra] for r in rows]
    assert sum(r["bytes"] for r in arm["bytes"]) == sum(r.bytes for r in everything)
    off = sum(r["bytes"] for r in arm["bytes"] if r["source"] != r["destination"])
    assert arm["headline_bytes"]["off_node"] == off == sum(arm["headline_bytes"]["by_class"].values())
    assert sum(arm["headline_bytes"]["by_tier"].values()) == sum(r.bytes for r in everything)
    read = sum(r.bytes for r in everything if r.class_ in ("input", "exchange"))
    assert arm["headline_bytes"]["input"] == read, "what a shuffle exchanges is read, too"


@pytest.mark.parametrize(
    ("arms", "choice"),
    [
        ([local_arm(), central_arm()], "local"),
        ([local_arm(), central_arm(size=10)], "central"),
        ([local_arm(), central_arm("reduce-then-ship", size=10)], "reduce-and-ship"),
        ([central_arm(), central_arm("central-staged")], "none"),
        ([local_arm(), Story("central-nas").end("failed", "disk full")], "none"),
    ],
)
def test_the_verdict_is_for_the_arm_with_the_fewest_bytes_off_its_node(arms: list[Story], choice: str) -> None:
    verdict = report_of(*arms)["verdict"]
    assert verdict["choice"] == choice
    assert verdict["sentence"] and verdict["because"]


def test_less_than_a_percent_apart_is_no_difference() -> None:
    verdict = report_of(central_arm("data-local", 100_000), central_arm("central-nas", 100_500))["verdict"]
    assert verdict["choice"] == "none"
    assert "No difference" in verdict["sentence"]


def test_on_a_shared_host_the_verdict_speaks_of_bytes_alone() -> None:
    shared = report_of(local_arm(), central_arm())
    assert shared["shared_host"] and any("bytes alone" in told for told in shared["verdict"]["because"])
    apart = report_of(local_arm(), central_arm(), on=cluster(shared_host=False))
    assert apart["shared_host"], "one physical host was read: the cluster file is wrong about it"


def test_nodes_on_hosts_of_their_own_are_compared_by_time_too() -> None:
    own = {name: f"host-{name}" for name in (*NODES, CENTRAL)}
    apart = report_of(local_arm(), central_arm(), on=cluster(shared_host=False), hosts=own)
    assert not apart["shared_host"]
    assert any("central-nas took 3.0 s" in told for told in apart["verdict"]["because"])
    two = own | {"node2": "host-node1"}
    assert report_of(local_arm(), on=cluster(shared_host=False), hosts=two)["shared_host"]


def test_joules_without_a_meter_are_missing_and_with_declared_watts_assumed() -> None:
    rows = report_of(local_arm())["arms"][0]["joules"]
    assert {r["stage"] for r in rows} == {"preprocess", "train"}
    assert all(r["joules"] is None and r["origin"] == "missing" and "no_meter" in r["reason"] for r in rows)
    declared = cluster(power=PowerProfile(idle_watts=10, busy_watts=30))
    first = report_of(local_arm(), on=declared)["arms"][0]["joules"][0]
    assert first["origin"] == "assumed"
    assert first["joules"] == pytest.approx(6 * 20), "6 s, half of the cores busy"
    assert first["node"] == "host-1" and "node1, node2" in first["reason"], "the host is counted once"


def test_a_stage_that_did_not_end_has_no_joules() -> None:
    story = Story("data-local").start("preprocess", "preprocess", images=40)
    rows = report_of(story, state="failed")["arms"][0]["joules"]
    assert [r["origin"] for r in rows] == ["missing"]
    assert "no_reading" in rows[0]["reason"]


def test_an_arm_that_never_began_is_what_its_run_is() -> None:
    report = report_of(local_arm(), Story("central-nas"), state="cancelled")
    assert [arm["state"] for arm in report["arms"]] == ["completed", "cancelled"]


def test_a_report_with_a_missing_joule_of_zero_breaks_the_schema() -> None:
    report = report_of(local_arm())
    report["arms"][0]["joules"][0]["joules"] = 0.0
    with pytest.raises(ValueError, match=r"joules\[0\]"):
        validate(report)


@pytest.mark.parametrize("key", ["verdict", "run", "arms"])
def test_a_report_without_a_key_of_the_contract_breaks_the_schema(key: str) -> None:
    report = report_of(local_arm())
    del report[key]
    with pytest.raises(ValueError, match=key):
        validate(report)


def test_the_schema_says_what_it_is() -> None:
    assert schema()["$schema"].endswith("2020-12/schema")
