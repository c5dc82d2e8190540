"""The executor interface: start a task on a node, hear what became of it. Three executors yield the same events."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from datalocal.spec.cluster import Cluster
from datalocal.spec.joining import Tls
from datalocal.tasks.model import AnyTask


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeFacts:
    """What a node says of itself when it joins: compared before any code of the user or of datalocal is sent to it."""

    node: str
    host: str
    """Identity of the physical host: nodes that share it share cores, disk, GPUs and power."""
    pid: int
    python: str
    datalocal: str
    cores: int
    store: str
    """Flight location of its store."""
    gpus: tuple[Mapping[str, Any], ...] = ()
    """[{uuid, name, memory_bytes}] as NVML lists them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskDone:
    """The task's result, as the task returned it."""

    task: AnyTask
    result: Any


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFailed:
    """The task raised, or its process died. `permanent` failures are not tried elsewhere (user code, bad input)."""

    task: AnyTask
    cause: str
    trace: str
    permanent: bool
    hint: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeLost:
    """A node's worker is gone, with everything it was working on."""

    node: str
    lost: tuple[AnyTask, ...] = field(default=())


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Leased:
    """Something on the cluster that only so many runs may have at a time; all runs name it alike."""

    what: str
    """For people, too: `waiting for {what}`."""
    at_a_time: int = 1


def gpu(uuid: str) -> Leased:
    """A GPU, by what NVML calls it."""
    return Leased(what=f"GPU {uuid}")


def training_slot(node: str, slots: int) -> Leased:
    """A place for a rank's agent on a node that has `slots`: a gang that has some of its places only would wait for ever."""
    return Leased(what=f"a training slot of {node}", at_a_time=slots)


Event: TypeAlias = TaskDone | TaskFailed | NodeLost


class Executor(Protocol):
    """What the runner needs of a cluster."""

    name: str
    cluster: Cluster
    token: str
    """The cluster's token: a secret."""
    address: str
    """Where the nodes reach this process."""
    tls: Tls | None
    """This process's certificates; None on loopback."""

    def facts(self) -> Mapping[str, NodeFacts]:
        """The nodes that are alive, by name."""

    def start(self, task: AnyTask) -> None:
        """Start `task` on `task.node`, and nowhere else."""

    def next_event(self, timeout_seconds: float) -> Event | None:
        """The next event, or None when nothing happened in time."""

    def abandon(self, tasks: Sequence[AnyTask]) -> None:
        """Forget these tasks and kill what they run; no event comes for them any more."""

    def rest(self) -> None:
        """Between stages: let go of idle child processes, so that no memory or CUDA context is held for nothing."""

    def lease(self, wanted: Sequence[Leased], cancelled: Callable[[], bool]) -> AbstractContextManager[None]:
        """Hold all of `wanted` for as long as the context lasts; waits for as long as other runs have them.

        `cancelled` is asked now and then. Raises RunCancelled when it says yes.
        """

    def rendezvous(self) -> AbstractContextManager[str]:
        """host:port of a store in this process where the agents of one gang meet, for as long as the context lasts."""

    def meters(self) -> Mapping[str, Any]:
        """One reading of the meters of every physical host, by host (see `datalocal.metering`)."""

    def witnesses(self) -> Mapping[str, Any]:
        """One reading of the byte counters that datalocal does not write, by node; none where there are no such."""

    def close(self) -> None:
        """Kill everything of this run on the nodes and let go of the cluster."""
