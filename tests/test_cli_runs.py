"""What commands say of runs, from the run directory alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from datalocal.cli import main
from datalocal.ledger.run_dir import RunDir


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Three runs: two of them begin alike."""
    place = tmp_path / "home"
    monkeypatch.setenv("DATALOCAL_HOME", str(place))
    for number, identity in enumerate(("resize-a1", "resize-b2", "train-c3")):
        manifest = {
            "schema": "datalocal.run/1",
            "id": identity,
            "job": {"name": identity.partition("-")[0]},
            "policies": ["data-local", "random"],
            "started": 1000.0 + number,
        }
        run = RunDir.create(place, identity, manifest)
        run.append("data-local", {"type": "stage_started", "stage": "preprocess", "kind": "preprocess", "shards": 4})
        run.append("data-local", {"type": "task", "record": {"stage": "preprocess", "shard": "a"}})
        run.set_state("cancelled")
    return place


def answer(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    """The JSON that a command prints."""
    with pytest.raises(SystemExit) as ended:
        main([*words, "--json"])
    assert ended.value.code == 0
    return json.loads(capsys.readouterr().out)


def test_the_list_names_runs_oldest_first(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = answer(capsys, "list")["runs"]
    assert [run["id"] for run in runs] == ["resize-a1", "resize-b2", "train-c3"]
    assert runs[0] == {
        "id": "resize-a1",
        "job": "resize",
        "state": "cancelled",
        "started": 1000.0,
        "arms": ["data-local", "random"],
    }


def test_an_empty_home_has_an_empty_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DATALOCAL_HOME", str(tmp_path / "new"))
    assert answer(capsys, "list") == {"runs": []}


@pytest.mark.parametrize(
    ("text", "identity"),
    [("last", "train-c3"), ("resize-b2", "resize-b2"), ("t", "train-c3"), ("resize-a", "resize-a1")],
)
def test_a_run_is_found_by_id_beginning_or_last(
    home: Path, text: str, identity: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert answer(capsys, "status", text)["id"] == identity


def test_a_run_is_found_by_its_directory(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert answer(capsys, "status", str(home / "resize-b2"))["id"] == "resize-b2"


def test_the_status_counts_what_is_done(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status = answer(capsys, "status", "last")
    assert (status["state"], status["job"], status["path"]) == (
        "cancelled",
        "train",
        str((home / "train-c3").resolve()),
    )
    begun, waiting = status["arms"]
    assert begun["policy"] == "data-local"
    assert [(stage["name"], stage["shards"], stage["tasks_done"]) for stage in begun["stages"]] == [
        ("preprocess", 4, 1)
    ]
    assert waiting == {"policy": "random", "state": None, "stages": []}


def test_the_beginning_of_several_runs_is_refused_with_their_names(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["status", "resize"])
    err = capsys.readouterr().err
    assert ended.value.code == 2
    assert "resize-a1" in err and "resize-b2" in err


def test_the_log_of_a_run_is_printed_as_it_is(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (home / "train-c3" / "run.log").write_text("one\ntwo\n", encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        main(["logs", "last"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == "one\ntwo\n"


def test_the_log_of_a_task_is_found_by_arm_and_name(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    RunDir.open(home / "train-c3").log_path("random", "train-rank0").write_text("loss 1.5\n", encoding="utf-8")
    with pytest.raises(SystemExit) as ended:
        main(["logs", "last", "--arm", "random", "--task", "train-rank0"])
    assert ended.value.code == 0
    assert "loss 1.5" in capsys.readouterr().out
