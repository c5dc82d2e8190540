"""A child process that runs tasks with the user's code, one at a time.

The node's own process keeps talking to the cluster while user code holds the GIL, crashes, leaks or is killed; and a CUDA
context goes away with the child. The child ends when its parent does, however the parent ends.
"""

from __future__ import annotations

import gc
import importlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import traceback
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from datalocal.errors import DatalocalError, StorageError, TaskError
from datalocal.tasks.model import AnyTask, NodeContext

_SPAWN = multiprocessing.get_context("spawn")  # fork would copy locks of the store's and dask's threads


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a task: a result, or a cause with its trace. Always picklable."""

    result: Any = None
    cause: str = ""
    trace: str = ""
    permanent: bool = False
    hint: str = ""

    @property
    def ok(self) -> bool:
        return not self.cause


def outcome_of(task: AnyTask, context: NodeContext) -> Outcome:
    """Run `task` in this process and catch whatever it raises."""
    from datalocal.tasks.entry import run_task

    try:
        return Outcome(result=run_task(task, context))
    except TaskError as error:
        return Outcome(cause=error.cause or "failed", trace=error.trace, permanent=True, hint=error.hint)
    except StorageError as error:
        return Outcome(cause=error.message, hint=error.hint)
    except DatalocalError as error:
        return Outcome(cause=error.message, permanent=True, hint=error.hint)
    except Exception as error:  # a bug or a passing trouble: told in full, tried elsewhere
        return Outcome(cause=f"{type(error).__name__}: {error}", trace=traceback.format_exc())


class TaskProcess:
    """One child; `run` is called from one thread at a time."""

    def __init__(self, context: NodeContext) -> None:
        ours, theirs = _SPAWN.Pipe()
        self._connection: Connection = ours
        self._process = _SPAWN.Process(
            target=_serve, args=(theirs, context), name=f"datalocal-task-{context.name}", daemon=True
        )
        self._process.start()
        theirs.close()

    def run(self, task: AnyTask) -> Outcome:
        """Run `task` in the child. A child that dies under it is an outcome, not an exception."""
        try:
            self._connection.send(task)
            multiprocessing.connection.wait([self._connection, self._process.sentinel])
            if self._connection.poll():
                outcome: Outcome = self._connection.recv()
                return outcome
        except (OSError, EOFError):
            pass
        self._process.join(5)
        return Outcome(cause=f"the process that ran the task {_how_it_ended(self._process.exitcode)}")

    @property
    def pid(self) -> int:
        """The child's process number."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the child can take another task."""
        return self._process.is_alive()

    def kill(self) -> None:
        """End the child at once, whatever it is doing."""
        self._process.kill()
        self._process.join(5)


def _how_it_ended(exit_code: int | None) -> str:
    if exit_code is None:
        return "does not answer"
    if exit_code < 0:
        name = signal.Signals(-exit_code).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        return f"was ended by {name}{hint}"
    return f"exited with status {exit_code}"


def _serve(connection: Connection, context: NodeContext) -> None:
    """The child: ends with its parent, ignores the terminal's Ctrl-C (the run decides what stops)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    importlib.import_module("datalocal.tasks.entry")
    gc.freeze()  # modules do not become garbage: no collection during a task has to look at them
    while True:
        try:
            task = connection.recv()
        except EOFError:
            return
        connection.send(outcome_of(task, context))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
