"""What the stages of one arm share, and how they listen: events of the executor, words of the sink, the user's Ctrl-C."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from datalocal.errors import RunCancelled
from datalocal.execution.base import Event, Executor
from datalocal.spec.cluster import Cluster
from datalocal.spec.job import JobSpec
from datalocal.storage.client import Store
from datalocal.storage.counting import ByteCounter
from datalocal.tasks.model import Cut, Wiring

HEARTBEAT_SECONDS = 0.25


class Record(Protocol):
    """Appends one event to the arm's ledger."""

    def __call__(self, type_: str, /, **content: Any) -> None: ...


@dataclass(slots=True, kw_only=True)
class Arm:
    """One policy's run of the job. The stages act on it; what they find goes to `record`."""

    policy: str
    job: JobSpec
    cluster: Cluster
    executor: Executor
    wiring: Wiring
    record: Record
    open_store: Callable[[ByteCounter], Store]
    """The store as the head sees it."""
    cancelled: threading.Event
    cut: Cut | None = None
    """Where the job's pipeline is cut; `job` is then the job cut there."""
    row_bytes: float | None = None
    """Of a row of the data set, for a job with a pipeline: samples then come in the same order wherever it is cut."""
    failures: list[Mapping[str, Any]] = field(default_factory=list)
    """What failing ranks sent, in order of arrival: the first is the cause of the others."""

    def events(self) -> Iterator[Event | None]:
        """Events as they come; None now and then, so that the caller can look at the clock. Raises RunCancelled."""
        while True:
            if self.cancelled.is_set():
                raise RunCancelled("the run was cancelled")
            yield self.executor.next_event(HEARTBEAT_SECONDS)

    def log_path(self, task: str) -> str:
        """Where a person finds the log of a task, for messages."""
        return f"datalocal logs {self.wiring.run} --arm {self.policy} --task {task}"
