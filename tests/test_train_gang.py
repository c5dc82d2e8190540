"""A real gang: agents, ranks and gloo in child processes, over real stores and a real sink."""

from __future__ import annotations

import io
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from datalocal.errors import RunCancelled, TaskError
from datalocal.placement.gang import Segment
from datalocal.tasks.model import TrainTask
from datalocal.tasks.train.agent import run_gang_in_process, run_train, stop_training
from datalocal.tasks.train.rendezvous import RendezvousStore
from tests import gangs, processes

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("gang")]

SHARDS = {"p0": ("a", [8, 8]), "p1": ("b", [8, 5])}


@contextmanager
def rendezvous() -> Iterator[str]:
    store = RendezvousStore()
    try:
        yield store.endpoint
    finally:
        store.close()


def run(world: gangs.World, tasks: Sequence[TrainTask]) -> list[BaseException | None]:
    """Run a gang as the nodes' workers do, a thread per node; what each raised."""
    with ThreadPoolExecutor(len(tasks)) as pool:
        ends = [pool.submit(run_train, task, world.contexts[task.node]) for task in tasks]
        return [end.exception() for end in ends]


def by_node(world: gangs.World) -> list[tuple[str, list[Segment]]]:
    return [(node, world.segments(node)) for node in ("a", "b")]


def assert_no_processes_left(before: set[int]) -> None:
    left = [child for child in processes.below(psutil.Process()) if child.pid not in before and is_training(child)]
    _, alive = psutil.wait_procs(left, timeout=20)
    assert not alive


def is_training(process: psutil.Process) -> bool:
    """Whether it belongs to a launch: everything but the warm interpreter itself, which has the node for its parent."""
    words, warm = processes.words(process), "datalocal.tasks.train.warm"
    if warm in words and warm not in processes.words(processes.parent(process)):
        return False
    return any(word.startswith("datalocal.tasks.train") for word in words)


def test_two_ranks_train_together_and_their_bytes_are_those_of_theory(tmp_path: Path) -> None:
    with gangs.world(tmp_path, SHARDS) as world, rendezvous() as endpoint:
        train = {"model": "job_code:wide", "arguments": {"batch_norm": True}, "epochs": 2, "checkpoint_every_steps": 4}
        tasks = world.tasks(by_node(world), 6, rendezvous=endpoint, validate=True, train=train)
        before = {child.pid for child in psutil.Process().children(recursive=True)}
        assert run(world, tasks) == [None, None], world.kept.logs
        assert_no_processes_left(before)
        kept = world.kept
        for epoch in range(2):
            assert {shard: uses.tolist() for shard, uses in kept.uses(epoch).items()} == {
                "p0": [1] * 16,
                "p1": [1] * 13,
            }
        assert list(kept.checkpoints) == ["l0-e0-s4", "l0-e0-s6", "l0-e1-s4", "l0-e1-s6"]
        validated = sorted((v["epoch"], v["rank"], v["total"]) for v in kept.of("validation"))
        assert validated == [(0, 0, 16), (0, 1, 13), (1, 0, 16), (1, 1, 13)]
        for record in kept.of("rank"):
            figures = record["gradients"]
            assert figures["steps"] == 12
            assert figures["step_bytes"] > 1_000_000
            assert figures["theory_bytes"] == figures["logical_bytes"] == 12 * figures["step_bytes"]
            assert 1.000 <= figures["payload_bytes"] / figures["theory_bytes"] <= 1.005
            rows = [row for row in record["bytes"] if row["class"] == "gradients"]
            other = {"a": "b", "b": "a"}[record["node"]]
            assert [(row["source"], row["destination"]) for row in rows] == [(record["node"], other)]
            assert (rows[0]["origin"], rows[0]["bytes"]) == ("measured.socket", figures["payload_bytes"])
        assert {record["rank"]: record["node"] for record in kept.of("rank")} == {0: "a", 1: "b"}
        assert any(row["class"] == "control" for content in kept.of("bytes") for row in content["rows"])


def test_ranks_that_take_turns_are_a_true_emulation_of_real_ones_with_batchnorm(tmp_path: Path) -> None:
    """Parameters and running statistics of a real gang and of the same gang in one process, after two epochs."""
    shards = {"p0": ("a", [8, 8]), "p1": ("b", [8, 8])}
    train = {"model": "job_code:wide", "arguments": {"batch_norm": True}, "epochs": 2}
    with gangs.world(tmp_path, shards) as world, rendezvous() as endpoint:
        assert run(world, world.tasks(by_node(world), 4, rendezvous=endpoint, train=train)) == [None, None]
        real = torch.load(io.BytesIO(world.kept.checkpoints["l0-e1-s4"]), weights_only=False)["model"]
        tasks = world.tasks(by_node(world), 4, train=train, launch=1)
        run_gang_in_process(tasks, [replace(world.contexts[task.node], in_process=True) for task in tasks])
        turns = torch.load(io.BytesIO(world.kept.checkpoints["l1-e1-s4"]), weights_only=False)["model"]
    assert {"2.running_mean", "2.running_var", "2.num_batches_tracked"} <= set(real)
    assert real["2.num_batches_tracked"] == turns["2.num_batches_tracked"] == 8
    for key, value in real.items():
        assert torch.allclose(value, turns[key], rtol=1e-3, atol=1e-5), key


def test_ranks_without_samples_and_uneven_ranks_do_not_hang(tmp_path: Path) -> None:
    shards = {"p0": ("a", [7])}
    with gangs.world(tmp_path, shards) as world, rendezvous() as endpoint:
        shares = [("a", world.segments("a")), ("b", []), ("b", [])]
        assert run(world, world.tasks(shares, 3, rendezvous=endpoint, validate=True)) == [None, None], world.kept.logs
        assert world.kept.uses()["p0"].tolist() == [1] * 7
        assert {r["rank"]: (r["node"], r["images"], r["steps"]) for r in world.kept.of("rank")} == {
            0: ("a", 7, 3),
            1: ("b", 0, 3),
            2: ("b", 0, 3),
        }


def test_the_traceback_of_the_rank_that_raises_comes_first(tmp_path: Path) -> None:
    with gangs.world(tmp_path, SHARDS) as world, rendezvous() as endpoint:
        train = {"model": "job_code:broken", "arguments": {"rank": 1}}
        ends = run(world, world.tasks(by_node(world), 6, rendezvous=endpoint, train=train))
        first = world.kept.of("failure")[0]
        assert (first["rank"], first["node"], first["kind"]) == (1, "b", "task")
        assert first["cause"] == "rank 1: ArithmeticError: the model does not like this batch"
        assert "job_code.py" in first["trace"]
        assert isinstance(ends[1], TaskError)
        assert "job_code.py" in ends[1].trace
        assert isinstance(ends[0], ConnectionError), "the other node's rank only lost its peer"
        assert "ArithmeticError" in world.kept.logs["train-rank1"]


SCRIPT = textwrap.dedent(
    """
    import argparse, os
    import torch
    import torch.distributed as dist
    from datalocal import training
    from neighbour import Net  # lies next to the script

    arguments = argparse.ArgumentParser()
    arguments.add_argument("--lr", type=float)
    arguments.add_argument("--widths", type=int, nargs="+")
    options = arguments.parse_args()
    session = training.session()
    dist.init_process_group(session.backend)
    assert dist.get_rank() == session.rank == int(os.environ["RANK"])
    model = Net(options.widths[0], session.classes).to(session.device)
    ddp = torch.nn.parallel.DistributedDataParallel(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=options.lr)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 100)
    session.attach(model=ddp, optimizer=optimizer, schedule=schedule)
    for epoch in session.epochs():
        for batch in epoch:
            loss = torch.nn.functional.cross_entropy(ddp(training.to_float(batch.images)), batch.labels)
            optimizer.zero_grad()
            (loss * batch.weight).backward()
            optimizer.step()
            schedule.step()
            session.step_done(loss)
        print("epoch", epoch.number, "rank", session.rank, options.lr, options.widths, schedule.last_epoch)
    """
)
NEIGHBOUR = textwrap.dedent(
    """
    import torch


    class Net(torch.nn.Module):
        def __init__(self, width, classes):
            super().__init__()
            self.layers = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(768, width), torch.nn.Linear(width, classes))

        def forward(self, images):
            return self.layers(images)
    """
)


def test_a_users_own_script_trains_with_its_shards_and_resumes(tmp_path: Path) -> None:
    code = {"own_train.py": SCRIPT, "neighbour.py": NEIGHBOUR}
    with gangs.world(tmp_path, SHARDS, code=code) as world, rendezvous() as endpoint:
        train = {
            "model": None,
            "script": "own_train.py",
            "arguments": {"lr": 0.1, "widths": [4, 2]},
            "checkpoint_every_steps": 3,
        }
        assert run(world, world.tasks(by_node(world), 5, rendezvous=endpoint, train=train)) == [None, None], (
            world.kept.logs
        )
        assert {shard: uses.tolist() for shard, uses in world.kept.uses().items()} == {"p0": [1] * 16, "p1": [1] * 13}
        assert "epoch 0 rank 1 0.1 [4, 2] 5" in world.kept.logs["train-rank1"]
        assert all(record["gradients"]["logical_bytes"] > 0 for record in world.kept.of("rank"))
        world.kept.logs.clear()
        again = world.tasks(
            by_node(world), 5, rendezvous=endpoint, train=train, start_step=3, checkpoint="l0-e0-s3", launch=1
        )
        assert run(world, again) == [None, None], world.kept.logs
        assert "epoch 0 rank 0 0.1 [4, 2] 5" in world.kept.logs["train-rank0"], (
            "the schedule went on from its third step"
        )


def wait_for_log(world: gangs.World, task: str, text: str) -> None:
    with world.kept.changed:
        assert world.kept.changed.wait_for(lambda: text in world.kept.logs.get(task, ""), timeout=60)


def test_stopping_a_run_kills_its_ranks_at_once(tmp_path: Path) -> None:
    with gangs.world(tmp_path, {"p0": ("a", [8])}) as world, rendezvous() as endpoint:
        (task,) = world.tasks([("a", world.segments("a"))], 2, rendezvous=endpoint, train={"model": "job_code:stuck"})
        before = {child.pid for child in psutil.Process().children(recursive=True)}
        ends: list[BaseException | None] = []
        thread = threading.Thread(target=lambda: ends.extend(run(world, [task])))
        thread.start()
        wait_for_log(world, "train-rank0", "ready to be stuck")
        begin = time.monotonic()
        stop_training("run")
        thread.join(60)
        assert time.monotonic() - begin < 20, "torch's own patience with ranks is 30 s, and this one sleeps for 1000 s"
        assert isinstance(ends[0], RunCancelled)
        assert_no_processes_left(before)


PARENT = textwrap.dedent(
    """
    import pickle, sys
    from datalocal.tasks.train.agent import run_train
    task, context = pickle.load(sys.stdin.buffer)
    run_train(task, context)
    """
)


@pytest.mark.parametrize("victim", ["worker", "agent"])
def test_no_process_survives_the_death_of_the_one_that_started_it(tmp_path: Path, victim: str) -> None:
    with gangs.world(tmp_path, {"p0": ("a", [8])}) as world, rendezvous() as endpoint:
        (task,) = world.tasks([("a", world.segments("a"))], 2, rendezvous=endpoint, train={"model": "job_code:stuck"})
        root = str(Path(__file__).resolve().parent.parent)
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
        parent = subprocess.Popen(
            [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
        )
        assert parent.stdin is not None
        parent.stdin.write(pickle.dumps((task, world.contexts["a"])))
        parent.stdin.close()
        wait_for_log(world, "train-rank0", "ready to be stuck")
        children = psutil.Process(parent.pid).children(recursive=True)
        assert len([child for child in children if is_training(child)]) == 4, "agent and rank, and a stub of each"
        agent = next(
            child for child in children if is_training(child) and child.ppid() != parent.pid and child.children()
        )
        os.kill(parent.pid if victim == "worker" else agent.pid, signal.SIGKILL)
        _, alive = psutil.wait_procs(children, timeout=20)
        assert not alive
        assert parent.stderr is not None
        error = parent.stderr.read()
        parent.stderr.close()
        parent.wait(20)
        if victim == "agent":
            assert b"the agent ended with SIGKILL" in error
