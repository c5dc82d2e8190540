"""The shipped job on real processes and real photographs: what `plan` says of its cuts, and what runs make of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.cuts import lines, measure, tabulated
from datalocal import runner
from datalocal.cli import main
from datalocal.demo.story import fill
from datalocal.launch import embedded
from datalocal.ledger.run_dir import RunDir
from datalocal.spec.cluster import load_cluster
from tests import worlds

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("cluster")]

HEAD_BYTES = (256 * 16 + 16) * 4
JOB = Path(__file__).resolve().parent.parent / "jobs" / "frozen-features.yaml"


def planned(capsys: pytest.CaptureFixture[str], cluster: Path, *words: str) -> Any:
    with pytest.raises(SystemExit) as ended:
        main(["plan", str(JOB), "--cluster", str(cluster), "--json", *words])
    assert ended.value.code == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.timeout(600)
def test_plan_and_runs_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster_file = worlds.cluster_file(tmp_path, storage=2, compute=1, block_bytes=1 << 22)
    home = tmp_path / "home"
    monkeypatch.setenv("DATALOCAL_HOME", str(home))
    cluster = load_cluster(cluster_file)
    with embedded.running(cluster, home) as handle:
        fill(handle, 200, lambda done, whole: None)
        table = tabulated(handle, JOB)
        plan = planned(capsys, cluster_file, "--set", "pipeline.augment={transform: 'torch:relu', after: trunk}")
        run = submitted(home, cluster_file)

    assert table.chosen == table.proposed == "pool" and table.gradient_bytes == HEAD_BYTES
    pipeline = plan["pipeline"]
    assert [row["cut"] for row in pipeline["cuts"] if row["forbidden"]] == ["pool"]
    assert pipeline["chosen"] == pipeline["proposed"] == "trunk"
    shipped = next(arm for arm in plan["arms"] if arm["policy"] == "reduce-then-ship")["estimate"]["summary"]
    assert shipped["by_class"]["output"] == pytest.approx(table.once_bytes(table.row("trunk")), rel=0.001)

    told = run.read_report()["arms"][0]["cut"]
    assert told["measured_bytes_per_sample"] == pytest.approx(told["predicted_bytes_per_sample"], rel=0.02)
    assert told["predicted_bytes_per_sample"] == pytest.approx(table.row("stem").stored.bytes_per_sample)
    frozen = {stage["name"]: stage["sha256"] for stage in run.manifest["frozen"]}
    tasks = [event["record"] for event in run.events("data-local") if event["type"] == "task"]
    ranks = [event for event in run.events("data-local") if event["type"] == "rank"]
    assert {task["node"] for task in tasks} == {rank["node"] for rank in ranks} == {"node1", "node2"}
    assert all(task["frozen"] == {"stem": frozen["stem"]} for task in tasks)
    for rank in ranks:
        assert rank["gradients"]["step_bytes"] == HEAD_BYTES, "DDP sends the head's gradients alone"
        assert rank["frozen"] == {name: frozen[name] for name in ("trunk", "pool")}

    raw, pool = measure(home, cluster_file, JOB, ("raw", "pool"), table=table, executor="inline")
    for row in (raw, pool):
        assert row.predicted_bytes == pytest.approx(row.shipped_bytes, rel=0.02), lines([row])
    assert pool.shipped_bytes * 30 < raw.shipped_bytes
    assert pool.accuracy == raw.accuracy > 2 / 16
    assert pool.loss == pytest.approx(raw.loss, rel=1e-4)
    assert pool.frozen == raw.frozen == frozen


def submitted(home: Path, cluster_file: Path) -> RunDir:
    """The job cut after its first stage, trained on beside the data by a gang of real ranks."""
    request = runner.RunRequest(
        job_file=JOB,
        cluster_file=cluster_file,
        home=home,
        policies=("data-local",),
        overrides=("pipeline.cut=stem", "train.epochs=1"),
        run_id="gang",
    )
    run = runner.prepare(request)
    assert runner.execute(run) == 0, run.state
    return run
