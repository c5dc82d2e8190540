"""Readings of foreign counters become rows beside our own count."""

from __future__ import annotations

import io
from typing import Any

from datalocal.ledger.records import ByteRow
from datalocal.report.build import build
from datalocal.report.schema import validate
from datalocal.report.text import render
from datalocal.report.witnesses import in_words, remarks, witness_rows
from datalocal.spec.cluster import Cluster
from tests import stories


def cluster() -> Cluster:
    """Node 1 is 10.77.0.11, and so on; the central one is 10.77.0.15."""
    plain = stories.cluster()
    return Cluster.model_validate(plain.model_dump() | {"kind": "netns", "storage": {"kind": "hdfs"}})


def reading(
    received: int = 0, packets: int = 0, *, read: dict[str, int] | None = None, served: int = 0, **more: Any
) -> dict[str, Any]:
    return {
        "interfaces": {"lo": {"received": 10**9, "sent": 0}, "e0": {"received": received, "packets": packets}},
        "control": 0,
        "trace": {"read": {address: [count, 1] for address, count in (read or {}).items()}, "write": {}},
        "jmx": {"BytesRead": served, "RemoteBytesRead": 0},
        "missing": {},
        **more,
    }


def hdfs_read(source: str, destination: str, count: int, traced: int) -> ByteRow:
    return ByteRow(
        class_="input",
        source=source,
        destination=destination,
        bytes=count,
        traced_bytes=traced,
        operations=1,
        socket_bytes=traced + 25,
    )


def story(after: dict[str, Any], rows: list[ByteRow]) -> stories.Story:
    before = dict.fromkeys(after, reading(read={"10.77.0.11": 7}, served=100))
    told = stories.Story("data-local").add("witnesses", stage="catalog", nodes=before)
    told.start("preprocess", "preprocess", images=10)
    told.task("preprocess", "a.parquet", "node1", *rows)
    told.finish("preprocess", seconds=1, images=10)
    return told.add("witnesses", stage="preprocess", nodes=after)


def test_a_window_is_the_growth_between_two_readings() -> None:
    after = {"node1": reading(5, read={"10.77.0.11": 523}, served=616), "node2": reading(0, served=100)}
    rows = witness_rows("data-local", story(after, [hdfs_read("node1", "node1", 500, 516)]).events, cluster())
    found = {(row["node"], row["witness"], row["direction"]): (row["bytes"], row["expected_bytes"]) for row in rows}
    assert found == {
        ("node1", "reader", "read"): (500, 516),
        ("node1", "socket", "read"): (541, 516),
        ("node1", "clienttrace", "read"): (516, 516),
        ("node1", "clienttrace", "read_local"): (516, 516),
        ("node1", "jmx", "served"): (516, 516),
        ("node1", "interface", "received"): (5, 0),
    }
    assert "data-local: clienttrace read 516 B, by our own count 516 B, to the byte" in in_words(rows)


def test_what_should_have_come_in_is_data_with_checksums_control_and_packet_headers() -> None:
    rows = [
        hdfs_read("node2", "node1", 500, 516),
        ByteRow(
            class_="output", source="node3", destination="node1", bytes=1000, origin="modelled.pipeline", operations=1
        ),
        ByteRow(class_="control", source="namenode", destination="node1", bytes=70, origin="measured.socket"),
        ByteRow(class_="control", source="head", destination="node1", bytes=9, origin="measured.writer"),
        ByteRow(class_="control", source="head", destination="node1", bytes=5),
        ByteRow(class_="control", source="node1", destination="namenode", bytes=10**6, origin="measured.socket"),
    ]
    after = {"node1": reading(3000, 10, control=400)}
    found = witness_rows("data-local", story(after, rows).events, cluster())
    (row,) = [row for row in found if row["witness"] == "interface"]
    assert row["parts"] == {"data": 516 + 1000 + 2 * 4, "control": 70 + 5 + 400, "headers": 660}
    assert (row["bytes"], row["expected_bytes"], row["operations"]) == (3000, sum(row["parts"].values()), 1)


def test_what_a_run_moved_before_it_broke_off_is_no_part_of_a_later_window() -> None:
    lost, again = (hdfs_read("node1", "node1", count, count + 4) for count in (500, 700))
    told = stories.Story("data-local").add("witnesses", stage="catalog", nodes={"node1": reading(served=100)})
    told.start("preprocess", "preprocess", images=10).task("preprocess", "a.parquet", "node1", lost)
    told.add("witnesses", stage="", nodes={"node1": reading(served=604)})  # resumed
    told.add("witnesses", stage="catalog", nodes={"node1": reading(served=604)})
    told.start("preprocess", "preprocess", images=10).task("preprocess", "b.parquet", "node1", again)
    told.add("witnesses", stage="preprocess", nodes={"node1": reading(served=1308)})
    (served,) = [row for row in witness_rows("data-local", told.events, cluster()) if row["direction"] == "served"]
    assert (served["stage"], served["bytes"], served["expected_bytes"]) == ("preprocess", 704, 704)
    assert remarks(told.events, cluster())[0].startswith(
        "preprocess: no witness for what was moved before the run broke off"
    )


def test_a_difference_is_told_and_a_restarted_datanode_is_no_witness() -> None:
    after = {"node1": reading(read={"10.77.0.15": 600}, served=50)}
    rows = witness_rows("data-local", story(after, [hdfs_read("node1", "central1", 500, 516)]).events, cluster())
    assert not [row for row in rows if row["witness"] == "jmx"]
    (line,) = [line for line in in_words(rows) if "clienttrace" in line]
    assert line.endswith("apart by 84 B (16 %)")


def test_which_witnesses_there_were_is_said() -> None:
    away = reading(missing={"jmx": "the DataNode at x:1 does not answer: refused"}, jmx=None)
    told = remarks(story({"node1": away, "node2": reading()}, []).events, cluster())
    assert told == [
        "No witness: jmx (the DataNode at x:1 does not answer: refused) on node1.",
        "Each node's interface and DataNode served this cluster only: no other tenant is in their counters.",
    ]
    assert remarks(stories.Story("data-local").events, cluster()) == []


def test_the_report_carries_the_rows_and_shows_them() -> None:
    after = {"node1": reading(read={"10.77.0.11": 523}, served=616)}
    told = story(after, [hdfs_read("node1", "node1", 500, 516)]).add(
        "arm_finished", state="completed", error=None, not_local=[]
    )
    report = build(stories.manifest("data-local", on=cluster()), {"data-local": told.events}, state="completed")
    validate(report)
    assert len(report["witnesses"]) == 5
    from rich.console import Console

    console = Console(width=200, record=True, file=io.StringIO())
    console.print(render(report))
    assert "clienttrace read 516 B" in console.export_text()
