"""An HDFS that is already there, with workers that others start beside its DataNodes: joined over TLS, on real wires."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import hdfs, worlds
from tests.hdfs import World
from tests.joining import JoinedWorld

pytestmark = hdfs.MARKS


@pytest.fixture
def joined(tmp_path: Path) -> Iterator[JoinedWorld]:
    """HDFS by one command; its nodes' own workers are gone, and those of `datalocal worker` take their places."""
    config = hdfs.cluster_file(tmp_path, "test-there", storage=2)
    there = World(tmp_path / "there", config)
    world = None
    try:
        there.up()
        cluster = there.cluster
        assert cluster.hdfs is not None
        there.kill("head", *(node.name for node in cluster.nodes))
        world = JoinedWorld(
            tmp_path / "joined",
            there.network.command,
            scheduler=f"tls://{cluster.address('head')}:8786",
            storage={"kind": "hdfs", "namenode": cluster.hdfs.namenode, "webhdfs": list(cluster.hdfs.webhdfs)},
            block_bytes=200_000,
            nodes=[
                {
                    "name": node.name,
                    "rack": node.rack,
                    "role": node.role,
                    "hosts": [cluster.address(node.name)],
                    "folder": str(tmp_path / "disks" / node.name),
                }
                for node in cluster.nodes
            ],
        )
        yield world
    finally:
        if world is not None:
            world.close()
        there.destroy()


def test_doctor_proves_it_and_a_job_from_the_head_reads_nothing_over_the_wire(
    joined: JoinedWorld, tmp_path: Path
) -> None:
    doctor = joined.run("doctor")
    assert doctor["ok"], [check for check in doctor["checks"] if check["state"] == "fail"]
    hdfs_checks = {check["check"]: check["state"] for check in doctor["checks"] if check["check"].startswith("HDFS")}
    assert len(hdfs_checks) == 6 and set(hdfs_checks.values()) == {"ok"}, doctor["checks"]
    images = worlds.image_folder(tmp_path / "images", count=120)
    assert joined.run("ingest", str(images), "pictures")["images"] == 120
    report = joined.run("submit", str(worlds.job_file(tmp_path / "job", train={"epochs": 1})))
    (arm,) = report["arms"]
    assert (arm["policy"], arm["state"]) == ("data-local", "completed")
    read = [row for row in arm["bytes"] if row["class"] == "input" and row["stage"] == "preprocess"]
    assert sum(row["bytes"] for row in read) > images_bytes(images)
    assert {row["source"] == row["destination"] for row in read if row["bytes"]} == {True}


def images_bytes(folder: Path) -> int:
    """What the pictures weigh: Parquet keeps them as they are."""
    return sum(path.stat().st_size for path in folder.rglob("*.jpg"))
