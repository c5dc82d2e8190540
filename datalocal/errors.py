"""The few exceptions of datalocal. Each says what happened, where, and what to do next, and each survives pickling."""

from __future__ import annotations

from typing import Any


class DatalocalError(Exception):
    """An error for the person who runs datalocal.

    `message` says what happened and where; `hint` what to do next. `str(error)` is both, on two lines.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message


class SpecError(DatalocalError):
    """A job or cluster file that cannot be used: file, key, problem and suggestion. Raised before anything starts."""

    exit_code = 2

    def __init__(self, file: str, key: str, problem: str, suggestion: str = "") -> None:
        super().__init__(f"{file}: {key}: {problem}" if key else f"{file}: {problem}", suggestion)
        self.file, self.key, self.problem, self.suggestion = file, key, problem, suggestion

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.file, self.key, self.problem, self.suggestion)


class RequestError(DatalocalError):
    """What was asked for cannot be: no such run, the beginning of several."""

    exit_code = 2


class DatasetError(DatalocalError):
    """A data set that is not there, or cannot be read as the job asks."""

    exit_code = 2


class PlacementError(DatalocalError):
    """A job that cannot be placed on this cluster, with the numbers that say why."""

    exit_code = 2


class ClusterError(DatalocalError):
    """The cluster is not up, not reachable, or not fit for the job (version mismatch, port in use, no such node)."""

    exit_code = 3


class StorageError(DatalocalError):
    """A read or write that failed on a node: disk full, replica gone, node away, token refused."""


class TaskError(DatalocalError):
    """A task that failed: the node, the task, the end of its trace, the log and what to do next."""

    def __init__(self, node: str, task: str, cause: str, trace: str = "", log: str = "", hint: str = "") -> None:
        message = f"{task} failed on {node}: {cause}"
        if trace:
            message += "\n" + trace.rstrip()
        if log:
            message += f"\nlog: {log}"
        super().__init__(message, hint)
        self.node, self.task, self.cause, self.trace, self.log = node, task, cause, trace, log

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.node, self.task, self.cause, self.trace, self.log, self.hint)


class RunCancelled(DatalocalError):
    """The run was cancelled; it can be resumed."""

    exit_code = 130
