"""The node's side of training: one agent process per launch, which starts the ranks; nothing of torch in this process.

The agent ends when this process does (its standard input closes), and its ranks end with it.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import pickle
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import datalocal
from datalocal.errors import RunCancelled, TaskError
from datalocal.tasks.model import NodeContext, TrainTask
from datalocal.tasks.train.network import own_interface
from datalocal.tasks.train.outcome import Failure
from datalocal.tasks.train.places import threads_per_rank
from datalocal.tasks.train.stub import ADDRESS, command

_SECONDS_TO_DIE = 5.0

_agents: dict[str, set[_Agent]] = {}
"""By run: the agents that run in this process."""
_lock = threading.Lock()
_warm: dict[subprocess.Popen[bytes], str] = {}
"""The node's warm interpreter and its address; none or one."""
_warm_lock = threading.Lock()


def run_train(task: TrainTask, ctx: NodeContext) -> None:
    """Run this node's ranks of a gang in child processes and wait for them. May be called in any thread.

    Raises TaskError (user code, bad input; with the trace of the rank that failed first on this node), StorageError,
    ConnectionError (other nodes went away), ChildProcessError (a rank's process was killed) or RunCancelled.
    """
    agent = _Agent(task, ctx)
    run = task.wiring.run
    with _lock:
        _agents.setdefault(run, set()).add(agent)
    try:
        failure = agent.wait()
    finally:
        agent.kill()
        with _lock:
            _agents[run].discard(agent)
    if agent.stopped:
        raise RunCancelled(f"{task.id} on {ctx.name} was stopped")
    if failure is not None:
        raise failure.error(ctx.name, task.id)


def stop_training(run: str) -> None:
    """Kill everything that trains for this run in this process, ranks included; returns when it is dead."""
    with _lock:
        agents = list(_agents.get(run, ()))
    for agent in agents:
        agent.stopped = True
        agent.kill()


def cool_down() -> None:
    """End the warm interpreter; the next training on this node starts another."""
    with _warm_lock:
        for process in _warm:
            process.stdin.close()  # type: ignore[union-attr]  # a pipe, as it was started with
            try:
                process.wait(_SECONDS_TO_DIE)
            except subprocess.TimeoutExpired:  # a host with more to do than it can
                process.kill()
                process.wait()
        _warm.clear()


def _warm_address(environment: dict[str, str]) -> str | None:
    """Where this node's warm interpreter takes requests; None where it cannot be had, then processes start cold."""
    with _warm_lock:
        for process in list(_warm):
            if process.poll() is not None:
                del _warm[process]
        if not _warm:
            if sys.platform != "linux":  # the stub's socket and its death signal are Linux's
                return None
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "datalocal.tasks.train.warm"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=environment,
                start_new_session=True,
            )
            assert process.stdout is not None
            address = process.stdout.readline().decode().strip()
            process.stdout.close()
            if not address:  # its trace is in the node's log
                process.wait()
                return None
            _warm[process] = address
        return next(iter(_warm.values()))


@atexit.register
def _stop_all() -> None:
    for run in list(_agents):
        stop_training(run)
    cool_down()


def run_gang_in_process(tasks: Sequence[TrainTask], contexts: Sequence[NodeContext]) -> None:
    """All ranks of a gang in this process, taking turns on one model: no child processes, the same records.

    `tasks` and `contexts` belong together, one per node. Raises TaskError, also for a script: it needs ranks of its own.
    """
    for task in tasks:
        if task.spec.script is not None:
            raise TaskError(
                task.node,
                task.id,
                f"the script {task.spec.script} cannot run under the in-process executor",
                hint="ranks of a script are processes: submit without `--executor inline`",
            )
    from datalocal.tasks.train.in_process import train_in_turns

    train_in_turns(tasks, contexts)


class _Agent:
    """One agent process and what comes out of it."""

    def __init__(self, task: TrainTask, ctx: NodeContext) -> None:
        self.stopped = False
        self._task, self._node = task, ctx.name
        warm = _warm_address(_environment(task, ctx))
        self._process = subprocess.Popen(
            [sys.executable, *command("datalocal.tasks.train.launcher", warm=warm is not None)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=_environment(task, ctx) | ({ADDRESS: warm} if warm is not None else {}),
            start_new_session=True,  # a Ctrl-C in the terminal is the run's to judge, not each process's
        )
        self._said: deque[str] = deque(maxlen=40)
        assert self._process.stderr is not None
        self._listener = threading.Thread(target=self._listen, args=(self._process.stderr,), daemon=True)
        self._listener.start()
        payload = pickle.dumps((task, ctx))
        with contextlib.suppress(BrokenPipeError):  # it died at once: `wait` tells
            assert self._process.stdin is not None
            self._process.stdin.write(len(payload).to_bytes(8, "little") + payload)
            self._process.stdin.flush()  # and stays open: its end is the sign that this process is gone

    def wait(self) -> Failure | None:
        """Wait for the agent; None when all its ranks are through."""
        assert self._process.stdout is not None
        answer = self._process.stdout.read()
        code = self._process.wait()
        self._listener.join(_SECONDS_TO_DIE)
        if answer:
            content = json.loads(answer)
            return Failure(**content) if content is not None else None
        how = signal.Signals(-code).name if code < 0 else f"status {code}"
        return Failure(kind="launch", cause=f"the agent ended with {how}\n" + "\n".join(self._said))

    def kill(self) -> None:
        """End the agent and its ranks; returns when they are dead."""
        if self._process.poll() is None:
            assert self._process.stdin is not None
            with contextlib.suppress(OSError):
                self._process.stdin.close()  # the agent kills its ranks and exits
            try:
                self._process.wait(_SECONDS_TO_DIE)
            except subprocess.TimeoutExpired:
                self._process.kill()  # the kernel ends the ranks with it
                self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()

    def _listen(self, stderr: IO[bytes]) -> None:
        for line in stderr:
            self._said.append(line.decode(errors="replace").rstrip())
        stderr.close()


def _environment(task: TrainTask, ctx: NodeContext) -> dict[str, str]:
    """What the agent inherits: the package on its path, its share of the cores, and no GPU (ranks get theirs)."""
    package = str(Path(datalocal.__file__).resolve().parent.parent)
    paths = [package, *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    environment = dict(os.environ) | {
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
        "OMP_NUM_THREADS": str(threads_per_rank(task, ctx)),
        # A thread that waits for the others of a step by spinning keeps a core from decoding, and from whoever else is on the
        # host: with one other busy process on two cores a step of two threads took ten times as long.
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONUNBUFFERED": "1",
    }
    if interface := own_interface(task):  # no look-up of this host's name
        environment |= {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": interface}
    return environment
