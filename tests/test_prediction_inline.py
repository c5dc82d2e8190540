"""Every run keeps what its plans foretold: the bytes of a training in one process come within two percent of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from datalocal import runner
from datalocal.report.schema import validate
from tests import worlds

POLICIES = ("data-local", "random", "central-nas", "central-staged")


def test_the_bytes_of_every_arm_are_within_two_percent_of_what_was_foretold(tmp_path: Path) -> None:
    cluster = worlds.cluster_file(tmp_path, compute=2, block_bytes=1 << 19)
    home = tmp_path / "home"
    worlds.fill(home, cluster, worlds.image_folder(tmp_path / "images", count=60, side=160))
    job = worlds.job_file(tmp_path / "job", preprocess=False, train={"validation": {"column": "label", "value": 1}})
    prepared = runner.prepare(
        runner.RunRequest(job_file=job, cluster_file=cluster, home=home, policies=POLICIES, executor="inline")
    )
    assert runner.execute(prepared) == 0
    report = prepared.read_report()
    validate(report)
    for arm in report["arms"]:
        rows = {row["of"]: row for row in arm["prediction"]["rows"] if row["figure"] == "bytes"}
        assert "checkpoint" in rows and ("staging" in rows) == (arm["policy"] == "central-staged")
        assert "input" in rows or arm["policy"] == "central-staged"
        for row in rows.values():
            assert row["predicted"] == pytest.approx(row["measured"], rel=0.02), (arm["policy"], row)
        seconds = [row for row in arm["prediction"]["rows"] if row["figure"] == "seconds"]
        assert seconds and all(row["predicted"] is None and "--calibrate" in row["reason"] for row in seconds)
