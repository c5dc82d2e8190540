"""Calibration and prediction: rates come out of a history that was made with them; the report sets both figures side by side."""

from __future__ import annotations

import io
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datalocal.errors import RequestError
from datalocal.estimate.calibrate import calibrate, gang_overheads, overhead, shares
from datalocal.estimate.rates import PAYLOAD_SHARE, Rates
from datalocal.report.build import build
from datalocal.report.page import render as render_page
from datalocal.report.prediction import prediction
from datalocal.report.schema import validate
from datalocal.spec.cluster import Cluster, Node
from tests.stories import CENTRAL, NODES, STARTED, Story, cluster, manifest, row

IMAGE, READ, WRITE = 0.004, 50e6, 20e6
"""Core-seconds of an image; bytes per core-second."""


def story_of(policy: str, nodes: tuple[str, ...], host_cores: int, *, remote: bool = False) -> Story:
    """Two tasks of 100 images and 1 MB on each node, on a host whose nodes take turns; started 3 s after the stage."""
    crowd = max(1.0, len(nodes) / host_cores)
    story = Story(policy).start("preprocess", "preprocess", images=200 * len(nodes), nodes=nodes)
    began, once = story.clock, crowd * (100 * IMAGE + 200_000 / WRITE)
    for turn in range(2):
        for number, node in enumerate(nodes):
            source = NODES[number - 1] if remote else node
            story.task("preprocess", f"s{number}-{turn}", node, row("input", source, node, 10**6), images=100)
            record = story.events[-1]["record"]
            record["bytes"].append(row("output", node, node, 200_000).to_json())
            record |= {
                "started": STARTED + began + 3.0 * crowd + turn * once,
                "seconds": once,
                "output_bytes": 200_000,
                "seconds_by_step": {
                    "read": crowd * 10**6 / READ,
                    "decode": crowd * 80 * IMAGE,
                    "transform": crowd * 10 * IMAGE,
                    "encode": crowd * 10 * IMAGE,
                    "write": crowd * 200_000 / WRITE,
                },
            }
    story.finish("preprocess", seconds=3.0 * crowd + 2 * once, images=200 * len(nodes))
    return story.end()


@pytest.mark.parametrize("host_cores", [2, 4])
def test_rates_are_those_that_the_history_was_made_with_whatever_took_turns(host_cores: int) -> None:
    here = cluster()
    story = story_of("data-local", NODES, host_cores)
    for event in story.events:
        if event["type"] == "meters":
            for reading in event["hosts"].values():
                reading["cpu_total_seconds"] = host_cores * reading["monotonic"]
    told = manifest("data-local", on=here, hosts=dict.fromkeys([*NODES, CENTRAL], "host-1"))
    rates = calibrate(told, {"data-local": story.events}, here)
    node = rates.nodes["node1"]
    assert rates.host_cores["host-1"] == host_cores
    assert node.preprocess_core_seconds == pytest.approx(IMAGE)
    assert node.read_bytes_per_second == pytest.approx(READ)
    assert node.write_bytes_per_second == pytest.approx(WRITE)
    assert rates.start.seconds(4, host_cores) == pytest.approx(3.0 * max(1, 4 / host_cores))
    assert rates.nodes[CENTRAL].preprocess_core_seconds == pytest.approx(IMAGE), "who was not seen is like the others"
    assert rates.output_share == pytest.approx(200_000 / (10**6 - 65_536)), "a reader reads the end of a shard twice"
    assert rates.task_core_seconds == pytest.approx(0.0, abs=1e-9)
    assert any("read nothing from another node" in note for note in rates.notes)
    assert Rates.from_json(json.loads(json.dumps(rates.to_json()))) == rates


def gang(policy: str, ranks: int, *, per_image: float, per_byte: float, sent: float) -> Story:
    """800 images on each rank, computed and sent with these rates by ranks with a core each."""
    story = Story(policy).start("train", "train", images=800 * ranks, nodes=NODES[:ranks]).launch(0, world=ranks)
    for rank in range(ranks):
        story.rank(0, rank, gradients={"payload_bytes": sent, "logical_bytes": sent, "theory_bytes": sent})
        busy = 800 * per_image + sent * per_byte
        story.events[-1] |= {
            "world": ranks,
            "images": 800,
            "seconds_by_step": {"wait": 0.25 * busy, "compute": 0.75 * busy, "checkpoint": 0.0, "validate": 0.0},
        }
    return story.finish("train", seconds=20.0, images=800 * ranks).end()


def test_gangs_of_two_sizes_tell_computing_from_synchronising() -> None:
    here = Cluster(name="apart", shared_host=False, replication=1, nodes=tuple(Node(name=n, rack="r") for n in NODES))
    arms = {
        "a": gang("a", 4, per_image=0.002, per_byte=2e-8, sent=5e7).events,
        "b": gang("b", 1, per_image=0.002, per_byte=2e-8, sent=0.0).events,
    }
    rates = calibrate(manifest("a", "b", on=here), arms, here)
    assert rates.nodes["node1"].train_core_seconds == pytest.approx(0.002)
    assert rates.sync_bytes_per_second == pytest.approx(5e7)
    alone = calibrate(manifest("a", on=here), {"a": arms["a"]}, here)
    assert alone.sync_within and any("gangs of one size" in note for note in alone.notes)


def test_what_a_shaped_link_takes_is_no_work_of_a_core() -> None:
    """Four ranks in namespaces of one host with four cores, links of 80 Mbit/s: 50 MB of gradients take 5 s of each."""
    here = Cluster.model_validate(
        {
            "name": "wired",
            "kind": "netns",
            "replication": 1,
            "network": {"rate_mbit": 80},
            "nodes": [{"name": name, "rack": "r"} for name in NODES],
        }
    )
    link = 1e7 * PAYLOAD_SHARE
    story = gang("a", 4, per_image=0.002, per_byte=1 / link, sent=5e7)
    rates = calibrate(manifest("a", on=here), {"a": story.events}, here)
    assert rates.nodes["node1"].link_bytes_per_second == pytest.approx(link)
    assert not rates.sync_within and rates.sync_bytes_per_second is None and not rates.loopback
    assert rates.nodes["node1"].train_core_seconds == pytest.approx(0.002)


def test_a_rank_trains_at_the_pace_that_was_seen_on_its_node() -> None:
    """Two threads on one model do not halve the time of a step: node4, with three cores, needs more core-seconds of an image."""
    nodes = tuple(Node(name=name, rack="r", cores=3 if name == "node4" else 1) for name in NODES)
    here = Cluster(name="apart", shared_host=False, replication=1, nodes=nodes)
    alone = gang("b", 1, per_image=0.002, per_byte=0.0, sent=0.0)
    wide = gang("c", 1, per_image=0.001, per_byte=0.0, sent=0.0)
    for event in wide.events:
        if event["type"] in ("rank", "launch"):
            event |= {"node": "node4"} if event["type"] == "rank" else {"nodes": ["node4"]}
    rates = calibrate(manifest("b", "c", on=here), {"b": alone.events, "c": wide.events}, here)
    assert rates.nodes["node1"].train_core_seconds == pytest.approx(0.002)
    assert rates.nodes["node4"].train_core_seconds == pytest.approx(3 * 0.001)
    assert rates.nodes["node2"].train_core_seconds == pytest.approx(0.0025), "who was not seen is like the others"


@pytest.mark.parametrize("row_groups", [1, 4])
def test_what_a_task_reads_before_it_has_work_is_no_time_beside_its_images(row_groups: int) -> None:
    """Reading 0.2 s, working 0.4 s, writing 0.1 s: one row group takes 0.7 s, four take 0.55 s, and 0.03 s are left."""
    here = cluster()
    story = Story("data-local").start("preprocess", "preprocess", images=200, nodes=NODES[:1])
    for turn in range(2):
        story.task("preprocess", f"s{turn}", "node1", row("input", "node1", "node1", 10**6), images=100)
        steps = {"read": 0.2, "decode": 0.3, "transform": 0.05, "encode": 0.05, "write": 0.1}
        took = (0.7 if row_groups == 1 else 0.55) + 0.03
        story.events[-1]["record"] |= {"row_groups": row_groups, "seconds": took, "seconds_by_step": steps}
    story.finish("preprocess", seconds=5.0, images=200)
    told = manifest("data-local", on=here, hosts=dict.fromkeys([*NODES, CENTRAL], "host-1"))
    rates = calibrate(told, {"data-local": story.events}, here)
    assert rates.task_core_seconds == pytest.approx(0.03)


def test_a_run_of_other_nodes_or_without_a_finished_stage_is_no_calibration() -> None:
    here = cluster()
    other = here.model_copy(update={"nodes": here.nodes[:3]})
    story = story_of("data-local", NODES, 2)
    with pytest.raises(RequestError, match="other nodes"):
        calibrate(manifest("data-local", on=here), {"data-local": story.events}, other)
    with pytest.raises(RequestError, match="has finished a stage"):
        calibrate(manifest("data-local", on=here), {"data-local": story.events[:3]}, here)


tasks = st.lists(
    st.tuples(st.floats(0, 50), st.floats(0.1, 20), st.sampled_from(["h1", "h2"]), st.integers(1, 4)).map(
        lambda task: (task[0], task[0] + task[1], task[2], task[3])
    ),
    min_size=1,
    max_size=12,
)


@settings(deadline=None)
@given(tasks, st.integers(1, 8))
def test_shares_never_give_away_more_than_a_host_has(spans: list[tuple[float, float, str, int]], cores: int) -> None:
    found = shares(spans, {"h1": cores, "h2": cores})
    assert all(0 < share <= 1 for share in found)
    for host in ("h1", "h2"):
        own = [(share, span) for share, span in zip(found, spans, strict=True) if span[2] == host]
        if not own:
            continue
        given_away = sum(share * (span[1] - span[0]) * span[3] for share, span in own)
        first, last = min(span[0] for _, span in own), max(span[1] for _, span in own)
        assert given_away <= cores * (last - first) * (1 + 1e-9)
        if len(own) == 1:
            assert own[0][0] == pytest.approx(min(1.0, cores / own[0][1][3]))


@settings(deadline=None)
@given(st.floats(0, 10), st.floats(0, 10), st.lists(st.floats(1, 8), min_size=2, max_size=5, unique=True))
def test_what_a_process_costs_is_told_from_what_is_fixed(each: float, fixed: float, crowds: list[float]) -> None:
    found = overhead([(crowd, each * crowd + fixed) for crowd in crowds])
    for crowd in crowds:
        assert found.seconds(round(crowd * 1000), 1000) == pytest.approx(each * crowd + fixed, rel=0.02, abs=0.05)


def test_a_gang_on_nodes_that_trained_before_starts_sooner() -> None:
    warm, cold = gang_overheads([(2.0, 2.0, 18.0), (0.5, 0.5, 6.0), (2.0, 0.0, 3.0), (0.5, 0.0, 1.5)])
    assert warm.seconds(4, 2) == pytest.approx(3.0) and warm.seconds(1, 2) == pytest.approx(1.5)
    assert warm.seconds(4, 2) + cold.seconds(4, 2) == pytest.approx(18.0)
    assert warm.seconds(1, 2) + cold.seconds(1, 2) == pytest.approx(6.0)


def foretold(**changes: Any) -> dict[str, Any]:
    return {
        "bytes": [
            {
                "class": "input",
                "tier": "node_local",
                "source": "node1",
                "destination": "node1",
                "bytes": 999,
                "reason": "",
            },
            {
                "class": "output",
                "tier": "off_rack",
                "source": "node1",
                "destination": "node3",
                "bytes": 90,
                "reason": "",
            },
            {
                "class": "gradients",
                "tier": "off_rack",
                "source": "node1",
                "destination": "node3",
                "bytes": None,
                "reason": "?",
            },
        ],
        "stages": [{"stage": "preprocess", "seconds": 5.0, "reason": ""}],
        "joules": [],
        "origin": "modelled.calibrated",
        "source": "run-1",
        "assumptions": ["This was taken for granted."],
        **changes,
    }


def test_the_report_sets_prediction_beside_measurement_on_terminal_and_page() -> None:
    from rich.console import Console

    from datalocal.report.text import render

    story = story_of("data-local", NODES, 2)
    story.events[2]["record"]["bytes"].append(row("output", "node1", "node3", 100).to_json())
    report = build(manifest("data-local"), {"data-local": story.events}, estimates={"data-local": foretold()})
    validate(report)
    rows = {(r["figure"], r["of"]): r for r in report["arms"][0]["prediction"]["rows"]}
    assert rows["bytes", "output"]["ratio"] == pytest.approx(0.9)
    assert rows["bytes", "gradients"]["predicted"] is None and rows["bytes", "gradients"]["reason"] == "?"
    assert rows["seconds", "preprocess"]["predicted"] == 5.0
    assert ("bytes", "input") not in rows, "what stayed on its node left no node"
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(render(report))
    told = console.export_text()
    assert "Foretold, and measured" in told and "not known beforehand: gradients" in told
    assert "Foretold, and measured" in render_page(report)
    without = build(manifest("data-local"), {"data-local": story.events})
    assert "prediction" not in without["arms"][0] and "Foretold" not in render_page(without)


def test_nothing_foretold_is_nothing_compared() -> None:
    assert prediction(None, [], []) is None
