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
from datalocal.spec.cluster import load_cluster
from tests import worlds

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("cluster")]

JOB = Path(__file__).resolve().parent.parent / "jobs" / "frozen-features.yaml"


def planned(capsys: pytest.CaptureFixture[str], cluster: Path, *words: str) -> Any:
    with pytest.raises(SystemExit) as ended:
        main(["plan", str(JOB), "--cluster", str(cluster), "--json", *words])
    assert ended.value.code == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.timeout(600)
def test_plan_and_runs_agree_on_every_cut_that_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster_file = worlds.cluster_file(tmp_path, storage=2, compute=1, block_bytes=1 << 22)
    home = tmp_path / "home"
    monkeypatch.setenv("DATALOCAL_HOME", str(home))
    cluster = load_cluster(cluster_file)
    with embedded.running(cluster, home) as handle:
        fill(handle, 200, lambda done, whole: None)

        plan = planned(capsys, cluster_file)
        assert plan["pipeline"]["chosen"] == plan["pipeline"]["proposed"] == "pool"
        assert plan["pipeline"]["gradient_bytes"] == (256 * 16 + 16) * 4
        share = plan["pipeline"]["cuts"][-1]["once_bytes"]
        shipped = next(arm for arm in plan["arms"] if arm["policy"] == "reduce-then-ship")
        assert shipped["estimate"]["summary"]["by_class"]["output"] == pytest.approx(share, rel=0.001)
        augmented = planned(capsys, cluster_file, "--set", "pipeline.augment={transform: 'torch:relu', after: stem}")[
            "pipeline"
        ]
        assert [row["cut"] for row in augmented["cuts"] if row["forbidden"]] == ["trunk", "pool"]
        assert augmented["proposed"] == "resized"

        table = tabulated(handle, JOB)
        (pool,) = measure(home, cluster_file, JOB, ("pool",), table=table)
        assert pool.predicted_bytes == pytest.approx(pool.shipped_bytes, rel=0.02), lines([pool])
        assert set(pool.frozen) == {"stem", "trunk", "pool"} and pool.accuracy > 2 / 16

        request = runner.RunRequest(
            job_file=JOB,
            cluster_file=cluster_file,
            home=home,
            policies=("data-local",),
            overrides=("pipeline.cut=raw", "train.epochs=1"),
            run_id="gang",
        )
        gang = runner.prepare(request)
        assert runner.execute(gang) == 0, gang.state
        ranks = [event for event in gang.events("data-local") if event["type"] == "rank"]
        assert len(ranks) == 2
        for rank in ranks:
            assert rank["gradients"]["step_bytes"] == (256 * 16 + 16) * 4, "DDP sends the head's gradients alone"
            assert rank["frozen"] == pool.frozen, "what ran on the nodes before the cut runs in the gang's ranks here"
