"""The run directory: what a reader sees after crashes, double starts and torn writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datalocal.errors import DatalocalError
from datalocal.ledger.run_dir import RunDir, all_runs, file_name


def make(home: Path, identity: str = "r1", **more: Any) -> RunDir:
    return RunDir.create(home, identity, {"id": identity, "started": 1.0, **more})


def events_file(run: RunDir, arm: str = "a") -> Path:
    return run.path / "arms" / arm / "events.jsonl"


def test_events_come_back_in_order_with_a_time(tmp_path: Path) -> None:
    run = make(tmp_path)
    for number in range(5):
        run.append("a", {"type": "task", "number": number})
    found = list(RunDir.open(run.path).events("a"))
    assert [event["number"] for event in found] == list(range(5))
    assert all(event["time"] > 0 for event in found)


def test_an_arm_without_events_is_empty(tmp_path: Path) -> None:
    assert list(make(tmp_path).events("never")) == []


def test_a_taken_id_is_refused_with_what_to_do(tmp_path: Path) -> None:
    make(tmp_path, "mine")
    with pytest.raises(DatalocalError, match=r"(?s)mine.*--run-id.*--resume mine"):
        make(tmp_path, "mine")


@pytest.mark.parametrize("identity", ["", "../up", "a/b", ".hidden", "x" * 101, "a b"])
def test_an_id_that_is_no_folder_name_is_refused(tmp_path: Path, identity: str) -> None:
    with pytest.raises(DatalocalError, match="no run id"):
        make(tmp_path, identity)


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatalocalError, match="no run directory"):
        RunDir.open(tmp_path)


@given(cut=st.integers(min_value=1, max_value=60))
def test_a_torn_last_line_is_not_there_and_a_resumed_run_writes_over_it(cut: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        run = make(Path(folder))
        run.append("a", {"type": "one"})
        run.append("a", {"type": "two", "text": "x" * 100})
        file = events_file(run)
        file.write_bytes(file.read_bytes()[:-cut])
        resumed = RunDir.open(run.path)
        assert [event["type"] for event in resumed.events("a")] == ["one"]
        resumed.append("a", {"type": "three"})
        assert [event["type"] for event in resumed.events("a")] == ["one", "three"]


def test_a_torn_first_line_leaves_nothing(tmp_path: Path) -> None:
    run = make(tmp_path)
    run.append("a", {"type": "one", "text": "x" * 200_000})  # longer than the block in which the tear is looked for
    file = events_file(run)
    file.write_bytes(file.read_bytes()[:-1])
    resumed = RunDir.open(run.path)
    resumed.append("a", {"type": "two"})
    assert [event["type"] for event in resumed.events("a")] == ["two"]


@pytest.mark.parametrize("damage", [b'{"type": "tas\n', b"[1]\n", b"\n", b'{"no": "type"}\n'])
def test_a_damaged_middle_line_is_refused_with_file_and_line(tmp_path: Path, damage: bytes) -> None:
    run = make(tmp_path)
    run.append("a", {"type": "one"})
    with events_file(run).open("ab") as file:
        file.write(damage)
    run.append("a", {"type": "three"})
    with pytest.raises(DatalocalError, match=r"events\.jsonl, line 2"):
        list(run.events("a"))


def test_many_threads_write_whole_lines(tmp_path: Path) -> None:
    run = make(tmp_path)

    def write(number: int) -> None:
        for _ in range(20):
            run.append("a", {"type": "t", "n": number, "pad": "y" * 5000})

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(event["n"] for event in run.events("a")) == sorted(list(range(8)) * 20)


def test_a_full_disk_is_told_with_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make(tmp_path)
    run.append("a", {"type": "one"})
    whole = os.write
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", lambda descriptor, line: whole(descriptor, line[:10]))  # what a full disk does
        with pytest.raises(DatalocalError, match=r"events\.jsonl: the disk is full"):
            run.append("a", {"type": "lost"})
    run.append("a", {"type": "two"})
    assert [event["type"] for event in run.events("a")] == ["one", "two"]


def test_a_run_that_was_never_started_reads_as_failed(tmp_path: Path) -> None:
    state = make(tmp_path).state
    assert state["state"] == "failed"
    assert "never started" in state["error"]


def test_a_living_run_is_running_and_a_dead_one_failed(tmp_path: Path) -> None:
    run = make(tmp_path)
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        run.set_state("running", pid=child.pid)
        assert run.state["state"] == "running"
    finally:
        child.kill()
    psutil.Process(child.pid)  # not reaped yet: a zombie does not run either
    child.wait()
    state = run.state
    assert state["state"] == "failed"
    assert "is gone" in state["error"] and "--resume r1" in state["error"]


def test_a_pid_that_another_process_got_is_not_the_run(tmp_path: Path) -> None:
    run = make(tmp_path)
    run.set_state("running", pid=os.getpid())
    file = run.path / "state.json"
    state = json.loads(file.read_text())
    file.write_text(json.dumps({**state, "pid_started": state["pid_started"] - 5}))
    assert run.state["state"] == "failed"


def test_a_cancelled_run_stays_cancelled_when_its_process_is_gone(tmp_path: Path) -> None:
    run = make(tmp_path)
    run.set_state("cancelled", error="the run was cancelled", exit_code=130)
    assert (run.state["state"], run.state["exit_code"]) == ("cancelled", 130)


def test_whole_files_leave_no_temporary_ones(tmp_path: Path) -> None:
    run = make(tmp_path)
    run.write_report({"a": 1})
    run.write_page("<html>")
    run.mark_completed()
    assert run.read_report() == {"a": 1}
    assert sorted(path.name for path in run.path.iterdir()) == ["COMPLETED", "report.html", "report.json", "run.json"]


def test_a_failed_write_keeps_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make(tmp_path)
    run.write_report({"old": 1})

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(DatalocalError, match=r"report\.json: No space left"):
            run.write_report({"new": 2})
    assert run.read_report() == {"old": 1}
    assert not list(run.path.glob(".report*"))


def test_checkpoints_come_back_and_a_missing_one_is_named(tmp_path: Path) -> None:
    run = make(tmp_path)
    run.store_checkpoint("a", "train/l0-e0-s10", pa.py_buffer(b"state"))
    assert run.read_checkpoint("a", "train/l0-e0-s10").to_pybytes() == b"state"
    with pytest.raises(DatalocalError, match="l0-e0-s20"):
        run.read_checkpoint("a", "train/l0-e0-s20")


@given(names=st.lists(st.text(min_size=1, max_size=400), min_size=2, max_size=6, unique=True))
def test_different_tasks_never_share_a_file(names: list[str]) -> None:
    files = [file_name(name) for name in names if name.isprintable()]
    assert len(set(files)) == len(files)
    assert all("/" not in name and not name.startswith(".") and len(name) <= 150 for name in files)


def test_ordinary_task_names_stay_readable(tmp_path: Path) -> None:
    path = make(tmp_path).log_path("a", "data-local.preprocess.part-00003.parquet")
    assert path.name == "data-local.preprocess.part-00003.parquet.log"
    assert path.parent.is_dir()


def test_runs_are_listed_oldest_first(tmp_path: Path) -> None:
    for identity, started in (("b", 3.0), ("a", 2.0), ("c", 1.0)):
        RunDir.create(tmp_path, identity, {"id": identity, "started": started})
    (tmp_path / ".clusters").mkdir()
    assert [run.id for run in all_runs(tmp_path)] == ["c", "a", "b"]
    assert all_runs(tmp_path / "nowhere") == []
