"""The in-process executor: tasks run one after the other where you can set a breakpoint, over real stores and real sockets."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from datalocal.execution.base import Event, Leased, NodeFacts, TaskDone, TaskFailed
from datalocal.execution.facts import host_id, own_facts
from datalocal.execution.task_process import Outcome, outcome_of
from datalocal.spec.cluster import Cluster
from datalocal.spec.joining import Tls
from datalocal.storage.server import StoreServer
from datalocal.tasks.model import AnyTask, NodeContext, TrainTask


class InlineExecutor:
    """Nodes are folders with a store each, all in this process; ranks of a gang take turns."""

    name = "inline"

    def __init__(self, *, cluster: Cluster, roots: Mapping[str, Path], token: str) -> None:
        self.cluster = cluster
        self.token = token
        self.address = "127.0.0.1"
        self.tls: Tls | None = None
        self._servers = {
            node.name: StoreServer(
                node=node.name,
                root=_made(roots[node.name]),
                token=token,
                free_disk_floor_bytes=cluster.free_disk_floor_bytes,
                disk_bytes=node.disk_bytes,
            )
            for node in cluster.nodes
        }
        self._contexts = {
            node.name: NodeContext(
                name=node.name,
                root=roots[node.name],
                token=token,
                cores=node.cores,
                executor=self.name,
                in_process=True,
            )
            for node in cluster.nodes
        }
        self._facts = {
            node.name: own_facts(node.name, cores=node.cores, store=self._servers[node.name].location, gpus=False)
            for node in cluster.nodes
        }
        self._queue: deque[AnyTask] = deque()
        self._ready: deque[Event] = deque()
        self._gang: dict[str, TrainTask] = {}
        self._meters: Any = None

    def facts(self) -> Mapping[str, NodeFacts]:
        """All nodes: in one process they live and die together."""
        return self._facts

    def start(self, task: AnyTask) -> None:
        """Queue `task`; it runs when the next event is asked for."""
        self._queue.append(task)

    def next_event(self, timeout_seconds: float) -> Event | None:
        """Run the next task, or the gang when all of it is here, and say what became of it."""
        while not self._ready and self._queue:
            task = self._queue.popleft()
            if isinstance(task, TrainTask):
                self._gang[task.node] = task
                if set(self._gang) == set(task.nodes):
                    gang, self._gang = [self._gang[node] for node in task.nodes], {}
                    self._ready.extend(_event(member, outcome) for member, outcome in self._run_gang(gang))
            else:
                self._ready.append(_event(task, outcome_of(task, self._contexts[task.node])))
        return self._ready.popleft() if self._ready else None

    def _run_gang(self, gang: Sequence[TrainTask]) -> list[tuple[TrainTask, Outcome]]:
        from datalocal.errors import TaskError
        from datalocal.tasks.train.agent import run_gang_in_process

        try:
            run_gang_in_process(gang, [self._contexts[task.node] for task in gang])
        except TaskError as error:
            failed = Outcome(cause=error.cause, trace=error.trace, permanent=True, hint=error.hint)
            return [(task, failed) for task in gang]
        return [(task, Outcome()) for task in gang]

    def abandon(self, tasks: Sequence[AnyTask]) -> None:
        """Forget tasks that have not run yet."""
        ids = {task.id for task in tasks}
        self._queue = deque(task for task in self._queue if task.id not in ids)
        self._ready = deque(event for event in self._ready if getattr(event, "task", None) not in tasks)
        self._gang = {node: task for node, task in self._gang.items() if task.id not in ids}

    def rest(self) -> None:
        """Nothing is held between stages."""

    @contextlib.contextmanager
    def lease(self, wanted: Sequence[Leased], cancelled: Callable[[], bool]) -> Iterator[None]:
        """Nobody else is in this process."""
        yield

    @contextlib.contextmanager
    def rendezvous(self) -> Iterator[str]:
        """Ranks that take turns need no place to meet."""
        yield ""

    def meters(self) -> Mapping[str, Any]:
        """One reading of this host."""
        from datalocal.metering import MeterAccumulator

        if self._meters is None:
            self._meters = MeterAccumulator()
        return {host_id(): self._meters.read()}

    def witnesses(self) -> Mapping[str, Any]:
        """In one process, on loopback, no counter belongs to one node."""
        return {}

    def close(self) -> None:
        """Close the stores."""
        self._queue.clear()
        for server in self._servers.values():
            server.close()


def _made(root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    return root


def _event(task: AnyTask, outcome: Outcome) -> Event:
    if outcome.ok:
        return TaskDone(task=task, result=outcome.result)
    return TaskFailed(
        task=task, cause=outcome.cause, trace=outcome.trace, permanent=outcome.permanent, hint=outcome.hint
    )
