"""What a terminal does to a run: Ctrl-C cancels it and leaves no process, a closed terminal leaves it running."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from datalocal.ledger.run_dir import RunDir
from tests import worlds

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("cluster")]

GATED = textwrap.dedent(
    """
    import pathlib, time


    def shrink(images, device, *, gate):
        gate = pathlib.Path(gate)
        (gate / "waiting").touch()
        while not (gate / "open").exists():
            time.sleep(0.01)
        return images
    """
)


def wait_for(what: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def submit(base: Path, *options: str) -> tuple[subprocess.Popen[bytes], RunDir]:
    """`datalocal submit` of a job whose transform waits at a gate, on a cluster that the run brings up itself."""
    cluster = worlds.cluster_file(base, storage=2)
    worlds.fill(base / "home", cluster, worlds.image_folder(base / "images", 40))
    job = worlds.job_file(base / "job", train=False, preprocess={"arguments": {"gate": str(base)}})
    (job.parent / "code_of_job.py").write_text(GATED, encoding="utf-8")
    root = str(Path(__file__).resolve().parent.parent)
    environment = os.environ | {
        "DATALOCAL_HOME": str(base / "home"),
        "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")]),
    }
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "datalocal",
            "submit",
            str(job),
            "--cluster",
            str(cluster),
            "--run-id",
            "gated",
            *options,
        ],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=_as_from_a_terminal,
    )
    return process, RunDir(base / "home" / "gated")


def _as_from_a_terminal() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup, children would ignore it, too


def processes_of(base: Path) -> list[psutil.Process]:
    """Every process that has to do with this test's folder, and what those have started."""
    found = {}
    for process in psutil.process_iter():
        try:
            if str(base) in " ".join(process.cmdline()):
                for each in (process, *process.children(recursive=True)):
                    found[each.pid] = each
        except psutil.Error:
            continue
    return [process for pid, process in found.items() if pid != os.getpid()]


def test_ctrl_c_cancels_the_run_and_leaves_no_process(tmp_path: Path) -> None:
    process, run = submit(tmp_path)
    wait_for((tmp_path / "waiting").exists)
    everything = processes_of(tmp_path)
    assert len(everything) > 4, "the command, the run, its cluster and its tasks"
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert b"datalocal submit --resume gated" in output
    assert run.state["state"] == "cancelled"
    _, alive = psutil.wait_procs(everything, timeout=20)
    assert not alive


def test_a_closed_terminal_leaves_the_run_running(tmp_path: Path) -> None:
    process, run = submit(tmp_path)
    wait_for((tmp_path / "waiting").exists)
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=60)
    assert run.state["state"] == "running"
    (tmp_path / "open").touch()
    wait_for(lambda: run.state["state"] != "running")
    assert run.state["state"] == "completed", run.log.read_text()


def test_detached_runs_are_cancelled_from_another_terminal(tmp_path: Path) -> None:
    process, run = submit(tmp_path, "--detach")
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    wait_for((tmp_path / "waiting").exists)
    everything = processes_of(tmp_path)
    environment = os.environ | {"DATALOCAL_HOME": str(tmp_path / "home")}
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run(
        [sys.executable, "-m", "datalocal", "cancel", "gated"],
        env=environment,
        cwd=root,
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert run.state["state"] == "cancelled"
    _, alive = psutil.wait_procs(everything, timeout=20)
    assert not alive
