"""Real processes, real sockets, real SIGKILL: what a run does when a node dies with unfinished work."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

import datalocal
from datalocal import runner
from datalocal.launch import embedded
from datalocal.ledger.run_dir import RunDir
from tests import processes, worlds

# Gangs are as large as what is claimed of them needs: torch is seconds of a core on every node that trains.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("cluster")]

GATED = textwrap.dedent(
    """
    import os, pathlib, time
    import cv2


    def wait_at(gate, who):
        gate = pathlib.Path(gate)
        (gate / f"at-{who}").touch()
        while not (gate / "open").exists():
            time.sleep(0.01)


    def shrink(images, device, *, gate=None, side=32):
        if gate:
            wait_at(gate, os.getppid())
        return [cv2.resize(image, (side, side)) for image in images]
    """
)

TRAINED = textwrap.dedent(
    """
    import torch


    class Gated(torch.nn.Module):
        def __init__(self, classes, gate=None, steps=5):
            super().__init__()
            self.body = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(32 * 32 * 3, classes))
            self.gate, self.left = gate, steps

        def forward(self, images):
            self.left -= 1
            if self.gate and self.left == 0 and self.training:
                wait_at(self.gate, os.getpid())
            return self.body(images)


    def raising(classes):
        import os
        class Broken(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.body = torch.nn.Linear(32 * 32 * 3, classes)
            def forward(self, images):
                if os.environ["RANK"] == "2":
                    raise ValueError("the layer of rank two is broken")
                return self.body(images.flatten(1))
        return Broken()


    def diverging(classes):
        class Nan(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.body = torch.nn.Linear(32 * 32 * 3, classes)
            def forward(self, images):
                return self.body(images.flatten(1)) * float("nan")
        return Nan()
    """
)


def wait_for(what: Callable[[], bool], seconds: float = 200) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


class World:
    """A cluster that is up, with 240 pictures."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.home = base / "home"
        self.cluster_file = worlds.cluster_file(base)
        self.cluster = worlds.fill(self.home, self.cluster_file, worlds.image_folder(base / "images", 240))
        self.handle = embedded.up(self.cluster, self.home, hold=True)

    def job(self, name: str, **extra: Any) -> Path:
        path = worlds.job_file(self.base / name, **extra)
        code = GATED if extra.get("train") is False else GATED + TRAINED  # torch is seconds in every process
        (path.parent / "code_of_job.py").write_text(code, encoding="utf-8")
        return path

    def start(self, job: Path, *policies: str, run_id: str) -> tuple[RunDir, psutil.Process]:
        run = runner.prepare(
            runner.RunRequest(
                job_file=job,
                cluster_file=self.cluster_file,
                home=self.home,
                policies=policies or ("data-local",),
                run_id=run_id,
            )
        )
        return run, psutil.Process(runner.spawn(run))

    def kill(self, node: str) -> int:
        """Returns when all that the node had started is dead, too: a rank that lives on could still finish its step."""
        pid = self.handle.processes[node].pid
        started = psutil.Process(pid).children(recursive=True)
        os.kill(pid, signal.SIGKILL)
        _, alive = psutil.wait_procs(started, timeout=60)
        assert not alive, "nothing of a node outlives it"
        return pid

    def heal(self) -> None:
        self.handle = embedded.up(self.cluster, self.home, hold=True)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("faults"))
    yield made
    embedded.down(made.home, made.cluster.name)


def listening_beyond_loopback(run: psutil.Process, world: World) -> list[str]:
    """Every listening socket of the run, the nodes and all they have started that is not on loopback."""
    roots = [run, *(psutil.Process(identity.pid) for identity in world.handle.processes.values())]
    return [
        f"{processes.words(process)} {address} {port}"
        for root in roots
        for process in (root, *processes.below(root))
        for address, port in processes.listens_at(process)
        if not address.removeprefix("::ffff:").startswith(("127.", "::1"))
    ]


def finish(process: psutil.Process, run: RunDir, seconds: float = 250) -> dict[str, Any]:
    process.wait(seconds)
    assert run.state["state"] == "completed", (run.state, run.log.read_text())
    return run.read_report()


@pytest.mark.parametrize("policy", ["data-local", "dask-replicas"])
def test_a_node_killed_in_preprocess_loses_and_repeats_nothing(world: World, tmp_path: Path, policy: str) -> None:
    job = world.job(f"kill-{policy}", train=False, preprocess={"arguments": {"gate": str(tmp_path)}})
    run, process = world.start(job, policy, run_id=f"kill-{policy}")
    victim = world.handle.processes["node2"].pid
    wait_for(lambda: (tmp_path / f"at-{victim}").exists())
    assert not any(event["type"] == "task" and event["record"]["node"] == "node2" for event in run.events(policy)), (
        "node2 holds unfinished work"
    )
    world.kill("node2")
    (tmp_path / "open").touch()
    try:
        report = finish(process, run)
    finally:
        world.heal()
    arm = report["arms"][0]
    assert arm["stages"][0]["images"] == 240
    assert arm["stages"][0]["tasks"]["retried"] > 0
    rows: dict[str, list[str]] = {}
    for node in world.cluster.nodes:
        folder = embedded.node_root(world.home, "small", node.name) / "data" / "pictures-small" / run.id / policy
        for shard in folder.glob("*.parquet"):
            rows[shard.name] = pq.read_table(shard, columns=["path"])["path"].to_pylist()
    paths = [path for shard in rows.values() for path in shard]
    assert len(paths) == len(set(paths)) == 240


def test_a_node_killed_in_training_is_replaced_from_the_checkpoint(world: World, tmp_path: Path) -> None:
    job = world.job(
        "kill-train",
        preprocess=False,
        train={"model": "code_of_job:Gated", "arguments": {"gate": str(tmp_path), "steps": 6}},
    )
    run, process = world.start(job, run_id="kill-train")
    wait_for(lambda: len(list(tmp_path.glob("at-*"))) == 4)
    wait_for(lambda: any(event["type"] == "checkpoint" for event in run.events("data-local")))
    assert listening_beyond_loopback(process, world) == [], "torch's own stores, too, stay on loopback"
    world.kill("node3")
    (tmp_path / "open").touch()
    try:
        report = finish(process, run)
    finally:
        world.heal()
    launches = [event for event in run.events("data-local") if event["type"] == "launch"]
    assert len(launches) == 2
    assert launches[1]["checkpoint"] is not None and "node3" not in launches[1]["nodes"]
    samples = report["arms"][0]["stages"][0]["samples"]
    assert samples["seen"] == samples["expected"] and samples["repeated"] == samples["dropped"] == 0
    assert samples["rolled_back"] > 0


def test_the_first_traceback_is_the_failing_ranks(world: World) -> None:
    run, process = world.start(
        world.job("raise", preprocess=False, train={"model": "code_of_job:raising", "gang": {"nodes": 3}}),
        run_id="raise",
    )
    assert process.wait(250) is not None
    error = run.state["error"]
    assert "rank 2" in error and "the layer of rank two is broken" in error
    assert "in forward" in error
    assert error.index("the layer of rank two is broken") < 200


def test_a_loss_that_is_not_a_number_stops_the_run_and_says_where(world: World) -> None:
    run, process = world.start(
        world.job("nan", preprocess=False, train={"model": "code_of_job:diverging", "gang": {"nodes": 2}}), run_id="nan"
    )
    process.wait(250)
    error = run.state["error"]
    assert run.state["state"] == "failed" and "loss" in error and "nan" in error and "step" in error


def test_ctrl_c_cancels_leaves_no_process_and_the_run_resumes_within_the_epoch(world: World, tmp_path: Path) -> None:
    job = world.job(
        "resume",
        preprocess=False,
        train={"model": "code_of_job:Gated", "arguments": {"gate": str(tmp_path), "steps": 6}, "gang": {"nodes": 2}},
    )
    run, process = world.start(job, run_id="resume")
    wait_for(lambda: len(list(tmp_path.glob("at-*"))) == 2)
    wait_for(lambda: any(event["type"] == "checkpoint" for event in run.events("data-local")))
    before = processes.below(process)
    process.send_signal(signal.SIGINT)
    process.wait(60)
    assert run.state["state"] == "cancelled"
    nodes = [psutil.Process(identity.pid) for identity in world.handle.processes.values()]

    def is_training(child: psutil.Process) -> bool:
        words = " ".join(processes.words(child))
        return ("torch" in words or "train" in words) and processes.runs(child)

    wait_for(lambda: not any(is_training(child) for node in nodes for child in processes.below(node)), 60)
    _, alive = psutil.wait_procs(before, timeout=60)
    assert not alive
    (tmp_path / "open").touch()
    again = psutil.Process(runner.spawn(runner.resume(run.path)))
    report = finish(again, run)
    launches = [event for event in run.events("data-local") if event["type"] == "launch"]
    assert launches[1]["epochs"][0]["start_step"] > 0, "the same gang goes on within its own epoch plan"
    samples = report["arms"][0]["stages"][0]["samples"]
    assert samples["seen"] == samples["expected"] and samples["repeated"] == samples["dropped"] == 0


def test_user_code_that_does_not_import_on_a_node_is_named(world: World) -> None:
    job = world.job("import", train=False)
    (job.parent / "code_of_job.py").write_text("import a_module_that_is_nowhere\n", encoding="utf-8")
    run, process = world.start(job, run_id="import")
    process.wait(250)
    error = run.state["error"]
    assert "a_module_that_is_nowhere" in error and "node" in error


def run_with_full_disks(tmp_path: Path, *full: str) -> tuple[int, RunDir]:
    cluster_file = worlds.cluster_file(tmp_path, per_node={node: {"disk_bytes": 1} for node in full})
    home = tmp_path / "home"
    worlds.fill(home, cluster_file, worlds.image_folder(tmp_path / "images", 60))
    run = runner.prepare(
        runner.RunRequest(
            job_file=worlds.job_file(tmp_path / "job", train=False),
            cluster_file=cluster_file,
            home=home,
            executor="inline",
        )
    )
    return runner.execute(run), run


def test_a_node_whose_disk_is_full_is_named_and_its_output_goes_elsewhere(tmp_path: Path) -> None:
    code, run = run_with_full_disks(tmp_path, "node1")
    assert code == 0 and run.read_report()["arms"][0]["stages"][0]["images"] == 60
    causes = [event["cause"] for event in run.events("data-local") if event["type"] == "replaced"]
    assert causes and all("node1" in cause and "free" in cause for cause in causes)


def test_when_every_disk_is_full_the_run_fails_with_node_and_numbers_and_the_input_is_untouched(tmp_path: Path) -> None:
    code, run = run_with_full_disks(tmp_path, "node1", "node2", "node3", "node4")
    assert code == 1
    assert "node" in run.state["error"] and "free" in run.state["error"]
    for node in ("node1", "node2", "node3", "node4"):
        data = embedded.node_root(tmp_path / "home", "small", node) / "data"
        assert not list(data.glob("pictures-small/**/*.parquet"))
    assert list((tmp_path / "home").glob(".clusters/small/nodes/*/data/pictures/*.parquet"))


def test_a_worker_of_another_version_is_refused_with_both_named(world: World) -> None:
    """A node process whose datalocal says it is 0.0.1 joins the same scheduler under the name of a node that is down."""
    world.kill("node4")
    wait_for(lambda: not world.handle.processes["node4"].alive)
    other = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import datalocal; datalocal.__version__ = '0.0.1'; from datalocal.launch.node import main; main()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert other.stdin and other.stdout
    message = {
        "node": "node4",
        "root": str(embedded.node_root(world.home, "small", "node4")),
        "cluster": world.cluster.model_dump(mode="json"),
        "scheduler": world.handle.scheduler,
        "token": world.handle.token,
        "hold": True,
    }
    other.stdin.write(json.dumps(message).encode() + b"\n")
    other.stdin.flush()
    assert "store" in json.loads(other.stdout.readline())
    try:
        run, process = world.start(world.job("version", train=False), run_id="version")
        process.wait(250)
        error = run.state["error"]
        assert "node4" in error and "0.0.1" in error and datalocal.__version__ in error
    finally:
        other.kill()
        other.wait()
        world.heal()
