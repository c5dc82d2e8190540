"""Every run keeps what its plans foretold: the bytes of a training in one process come within two percent of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from datalocal import runner
from datalocal.estimate.rates import declared
from datalocal.execution.foresight import Foresight
from datalocal.placement.policies import data_local
from datalocal.report.schema import validate
from datalocal.tasks.train.size import Sizes
from tests import worlds
from tests.test_estimate_plans import with_rates
from tests.test_placement_policies import catalog, cluster, job

POLICIES = ("data-local", "random", "central-nas", "central-cached", "central-staged")
AT_HOME = ("data-local", "central-staged")
"""They read what lies on their own disk, also to validate."""


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
        assert "checkpoint" in rows and ("staging" in rows) == (arm["policy"] in ("central-staged", "central-cached"))
        moved = {row["class"] for row in arm["bytes"] if row["source"] != row["destination"] and row["bytes"]}
        assert ("input" in rows) == ("input" in moved)
        assert ("input" in moved) == (arm["policy"] not in AT_HOME)
        for row in rows.values():
            assert row["predicted"] == pytest.approx(row["measured"], rel=0.02), (arm["policy"], row)
        seconds = [row for row in arm["prediction"]["rows"] if row["figure"] == "seconds"]
        assert seconds and all(row["predicted"] is None and "--calibrate" in row["reason"] for row in seconds)


@pytest.mark.parametrize(("in_process", "step_seconds"), [(True, 0.1), (False, 1.503)])
def test_ranks_that_share_a_model_are_foretold_no_synchronising(in_process: bool, step_seconds: float) -> None:
    """10 images of each of 4 ranks at 100 a second; 1 GB of gradients over links of 1 GB/s."""
    here = with_rates(cluster(4))
    what = job(train={"model": "m:net", "batch": 40})
    found = catalog([(100, (f"node{i % 4}",)) for i in range(8)], [node.name for node in here.nodes])
    foresight = Foresight(
        job=what,
        rates=declared(here, source="x"),
        sizes=Sizes(gradient_bytes=10**9, checkpoint_bytes=10**9),
        warm=frozenset(),
        in_process=in_process,
    )
    told = foresight.foretell(data_local(what, found, here), found, here, [])
    (stage,) = told["stages"]
    assert stage["step_seconds"] == pytest.approx(step_seconds, rel=0.001)
    assert sum(row["bytes"] for row in told["bytes"] if row["class"] == "gradients") == (
        0 if in_process else 20 * 6 * 10**9
    )
