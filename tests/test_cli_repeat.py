"""`submit --repeat`: the same job again and again, interleaved, and one comparison."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from datalocal.cli import main
from datalocal.ledger.run_dir import RunDir
from tests import worlds


def submitted(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """(exit code, what was printed, what was told beside it)"""
    with pytest.raises(SystemExit) as ended:
        main(["submit", *words])
    out, err = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, out, err


def test_every_repetition_is_a_run_of_the_same_seed_with_its_policies_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cluster = worlds.cluster_file(tmp_path, storage=2)
    worlds.fill(tmp_path / "home", cluster, worlds.image_folder(tmp_path / "images", 40))
    job = worlds.job_file(tmp_path / "job", train=False)
    monkeypatch.setenv("DATALOCAL_HOME", str(tmp_path / "home"))
    words = [str(job), "--cluster", str(cluster), "--executor", "inline", "--run-id", "twice"]
    code, out, err = submitted(
        capsys, *words, "--policy", "random", "--policy", "data-local", "--repeat", "2", "--json"
    )
    assert code == 0, err
    found: dict[str, Any] = json.loads(out)
    assert [(row["policy"], row["completed"]) for row in found["policies"]] == [("random", 2), ("data-local", 2)]
    runs = [RunDir(tmp_path / "home" / f"twice-{number}") for number in (1, 2)]
    assert [run.manifest["policies"] for run in runs] == [["random", "data-local"], ["data-local", "random"]]
    assert len({run["seed"] for run in found["runs"]}) == 1
    assert any("Fewer than 5 runs" in remark for remark in found["remarks"])


@pytest.mark.parametrize(
    ("words", "told"),
    [(["--detach"], "leave --detach out"), (["--repeat", "1"], "1 is not in the range"), ([], "")],
)
def test_what_cannot_be_repeated_is_refused_before_anything_starts(
    words: list[str], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATALOCAL_HOME", str(tmp_path))
    job = [] if words else ["--resume", "a-run"]
    code, _, err = submitted(capsys, *(job or ["resize"]), "--repeat", "3", *words)
    assert code == 2
    assert (told or "--repeat") in err
    assert not list(tmp_path.iterdir())
