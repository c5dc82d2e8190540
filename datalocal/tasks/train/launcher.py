"""The agent process: torch's elastic launcher for the ranks of one node. Started by `agent.py`, never by a person.

Reads its task from standard input, answers on standard output with one JSON value: null, or the failure.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

from torch.distributed.elastic.multiprocessing import LogsDest, LogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous.api import RendezvousError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from datalocal.errors import DatalocalError
from datalocal.storage.counting import ByteCounter
from datalocal.storage.sink import SinkClient
from datalocal.tasks.code import ensure_code
from datalocal.tasks.model import NodeContext, TrainTask
from datalocal.tasks.train.network import own_address
from datalocal.tasks.train.outcome import Failure
from datalocal.tasks.train.places import plan_ranks
from datalocal.tasks.train.rendezvous import listen_on_own_address_only
from datalocal.tasks.train.stub import ADDRESS, command
from datalocal.tasks.train.watch import kill_descendants, when_parent_dies
from datalocal.tasks.wires import sink_of

JOIN_SECONDS = 120
"""How long the agents of a gang wait for each other: starting torch on all nodes of a small shared host takes long."""

_LOG_BYTES = 64 * 1024


def main() -> None:
    """Read the task, run its ranks, answer."""
    answer_to = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print goes to the log
    parent = os.getppid()
    size = int.from_bytes(sys.stdin.buffer.read(8), "little")
    task, ctx = pickle.loads(sys.stdin.buffer.read(size))  # noqa: S301  # from the process that started us
    when_parent_dies(parent, _end)
    threading.Thread(target=_end_with_input, name="datalocal-stdin-watch", daemon=True).start()
    counter = ByteCounter()
    sink = sink_of(task.wiring, ctx, counter)
    failure = _launch(task, ctx, sink)
    about = {"arm": task.arm, "stage": task.stage, "launch": task.launch}
    with contextlib.suppress(DatalocalError):  # the run process is gone: nobody is left to tell
        if failure is not None and not failure.told:
            content = {
                "rank": failure.rank,
                "node": ctx.name,
                "kind": failure.kind,
                "cause": failure.cause,
                "trace": failure.trace,
            }
            sink.record("failure", about | content)
        sink.record("bytes", about | {"rows": [row.to_json() for row in counter.rows()]})
    json.dump(failure.to_json() if failure else None, answer_to)
    answer_to.close()
    sys.stderr.flush()
    os._exit(0)  # all is told; tearing torch down takes a second of a core that others need


def _launch(task: TrainTask, ctx: NodeContext, sink: SinkClient) -> Failure | None:
    """Run the ranks; the failure that came first, or None."""
    try:
        folder = ensure_code(task.wiring.code, ctx, sink) if task.wiring.code else None
    except DatalocalError as error:
        return Failure(kind="storage", cause=error.message, hint=error.hint, when=time.time())
    ranks = _Ranks(task, ctx, sink, folder)
    own = own_address(task)
    config = LaunchConfig(
        min_nodes=len(task.nodes),
        max_nodes=len(task.nodes),  # a changed gang is a fresh launch
        nproc_per_node=task.ranks_on_node,
        run_id=f"{task.wiring.run}-{task.arm}-{task.stage}-{task.launch}",
        rdzv_backend="c10d",
        rdzv_endpoint=task.rendezvous,
        rdzv_configs={"is_host": False, "timeout": JOIN_SECONDS, "join_timeout": JOIN_SECONDS, "last_call_timeout": 1},
        max_restarts=0,
        monitor_interval=0.1,
        local_addr=own,
        logs_specs=ranks,
        shutdown_timeout=2,
    )
    if own is not None:
        listen_on_own_address_only()
    try:
        elastic_launch(config, sys.executable)(*command("datalocal.tasks.train.rank", warm=ADDRESS in os.environ))
    except ChildFailedError as error:
        return ranks.first_failure(error)
    except (RendezvousError, OSError, RuntimeError) as error:
        what = f"{type(error).__name__}: {error}"
        if ranks.started:
            cause = f"the agent lost the others (connection closed by peer): {what}"
            return Failure(kind="peers", cause=cause, when=time.time())
        agents = f"the {len(task.nodes)} agents ({', '.join(task.nodes)})"
        cause = f"{agents} did not meet at {task.rendezvous} in {JOIN_SECONDS} s: {what}"
        return Failure(kind="launch", cause=cause, when=time.time())
    finally:
        ranks.close()
    return None


class _Ranks(LogsSpecs):
    """Wires the ranks of this node: standard output and error into the run's logs, the task in, failures out.

    All through pipes and memory files that this process holds open: nothing is left on a disk, whoever dies.
    """

    def __init__(self, task: TrainTask, ctx: NodeContext, sink: SinkClient, folder: Path | None) -> None:
        super().__init__()
        self.started = False
        self._task, self._ctx, self._sink = task, ctx, sink
        self._numbers = plan_ranks(task)
        self._payload = _memory_file(pickle.dumps((task, ctx, folder)))
        self._failures = {local: _memory_file(b"") for local in self._numbers}
        self._writers: dict[int, int] = {}
        self._readers: list[threading.Thread] = []
        for local in self._numbers:
            reading, self._writers[local] = os.pipe()
            self._readers.append(threading.Thread(target=self._forward, args=(local, reading), daemon=True))
            self._readers[-1].start()

    @property
    def root_log_dir(self) -> str:
        """Nothing is logged to a folder."""
        return os.devnull

    def reify(self, envs: dict[int, dict[str, str]]) -> LogsDest:
        """Give each rank its pipe and its files (see the base class)."""
        self.started = True
        pipes = {local: _path(self._writers[local]) for local in envs}
        for local, environment in envs.items():
            environment["DATALOCAL_TRAIN_TASK"] = _path(self._payload)
            environment["DATALOCAL_TRAIN_FAILURE"] = _path(self._failures[local])
            environment["DATALOCAL_TRAIN_AGENT"] = str(os.getpid())
            environment["TORCHELASTIC_ERROR_FILE"] = ""
        nowhere = dict.fromkeys(envs, os.devnull)
        return LogsDest(stdouts=pipes, stderrs=dict(pipes), error_files=nowhere)

    def first_failure(self, error: ChildFailedError) -> Failure:
        """What went wrong first on this node: what a rank said itself, else how its process ended."""
        said = [Failure(**json.loads(text)) for text in map(_content, self._failures.values()) if text]
        if said:
            return min(said, key=lambda failure: (failure.kind == "peers", failure.when))
        process = min(error.failures.values(), key=lambda failure: failure.timestamp)
        if process.exitcode < 0:
            name = signal.Signals(-process.exitcode).name
            cause = f"was ended by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
        else:
            cause = f"exited with status {process.exitcode}"
        rank = self._numbers[process.local_rank]
        return Failure(kind="killed", cause=f"rank {rank} {cause}", rank=rank, when=time.time())

    def close(self) -> None:
        """Take what is still in the pipes."""
        for writer in self._writers.values():
            os.close(writer)
        for reader in self._readers:
            reader.join(2)

    def _forward(self, local: int, reading: int) -> None:
        name = f"{self._task.stage}-rank{self._numbers[local]}"
        rest = b""
        while piece := os.read(reading, _LOG_BYTES):
            lines, newline, rest = (rest + piece).rpartition(b"\n")
            self._log(name, lines + newline)
        self._log(name, rest)
        os.close(reading)

    def _log(self, name: str, text: bytes) -> None:
        if text:
            with contextlib.suppress(DatalocalError):  # a lost log line must not stop the rank that wrote it
                self._sink.log(self._task.arm, name, text.decode(errors="replace"))


def _memory_file(content: bytes) -> int:
    descriptor = os.memfd_create("datalocal")
    os.write(descriptor, content)
    return descriptor


def _path(descriptor: int) -> str:
    """How this process's children open its descriptor."""
    return f"/proc/{os.getpid()}/fd/{descriptor}"


def _content(descriptor: int) -> bytes:
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0)


def _end_with_input() -> None:
    sys.stdin.buffer.read()
    _end()


def _end(*_: Any) -> None:
    kill_descendants()
    os._exit(1)


if __name__ == "__main__":
    main()
