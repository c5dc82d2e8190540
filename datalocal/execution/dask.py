"""The dask executor: strict pins, our own view of which nodes live, and nothing left to dask's own placement.

dask knows nothing of replicas, steals what it thinks is free to move, and lets a pinned task wait for ever when its worker
is gone. So each node owns a resource that only it has, work stealing is off (see `launch.head`), and when a worker leaves,
its tasks are taken back and reported as lost; the runner re-places them.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from distributed import Client, Future

from datalocal.errors import ClusterError
from datalocal.execution.base import Event, Leased, NodeFacts, NodeLost, TaskDone, TaskFailed
from datalocal.execution.facts import check_versions
from datalocal.execution.leases import Leases
from datalocal.execution.security import check_scheduler, own_address, security
from datalocal.execution.task_process import Outcome
from datalocal.execution.worker import (
    meters_on_node,
    rest_on_node,
    resume_on_node,
    run_on_node,
    stop_on_node,
    witnesses_on_node,
)
from datalocal.spec.cluster import Cluster
from datalocal.spec.joining import Tls
from datalocal.tasks.model import AnyTask

CONTROL_UNITS = 1000
"""Small tasks that need no slot take one of these; a node has plenty."""


def node_resources(node: str, slots: int) -> dict[str, float]:
    """The dask resources that only this node has: they pin its tasks, also after a restart under another address."""
    return {f"slot:{node}": slots, f"control:{node}": CONTROL_UNITS}


class DaskExecutor:
    """One per run. Thread-safe where dask's callbacks come in; everything else is called by the runner's one thread."""

    name = "dask"

    def __init__(self, *, cluster: Cluster, scheduler: str, run: str, token: str, tls: Tls | None = None) -> None:
        self.cluster = cluster
        self.token = token
        self.tls = tls
        self._run = run
        check_scheduler(scheduler, tls)
        try:
            self.address = own_address(scheduler)
            self._client = Client(
                scheduler, set_as_default=False, timeout=10, name=f"datalocal-{run}", security=security(tls)
            )
        except (OSError, TimeoutError) as error:
            raise ClusterError(
                f"no dask scheduler answers at {scheduler}: {error}", "`datalocal cluster status` tells what is up"
            ) from None
        self._leases = Leases(self._client, run)
        # Not a SimpleQueue: its `get` forgets the timeout for ever when a signal comes as the time is up (CPython 3.11).
        self._events: queue.Queue[Event] = queue.Queue()
        self._lock = threading.Lock()
        self._in_flight: dict[str, tuple[AnyTask, Future]] = {}
        self._addresses: dict[str, str] = {}
        self._number = 0
        self._client.subscribe_topic("all", self._on_cluster_event)
        try:
            check_versions(self.facts())  # before anything of ours is sent to a node
        except ClusterError:
            self._client.close(timeout=5)
            raise
        self._call(resume_on_node, run, workers=list(self._addresses))

    def facts(self) -> Mapping[str, NodeFacts]:
        """The nodes that are alive, by name: only workers that datalocal started."""
        # Not `scheduler_info`: what it returns is overwritten every two seconds by an update that asks for no workers.
        workers = self._client.sync(self._client.scheduler.identity, n_workers=-1)["workers"]
        facts: dict[str, NodeFacts] = {}
        for address, worker in workers.items():
            told = worker.get("datalocal")
            if told and worker["name"] in {node.name for node in self.cluster.nodes}:
                facts[worker["name"]] = NodeFacts(**told)
                with self._lock:
                    self._addresses[address] = worker["name"]
        return facts

    @property
    def seconds_up(self) -> float:
        """How long the scheduler has been up, by its clock and ours."""
        return time.time() - float(self._client.scheduler_info()["started"])

    def start(self, task: AnyTask) -> None:
        """Start `task` on `task.node`, and nowhere else."""
        with self._lock:
            self._number += 1
            key = f"{self._run}-{task.id}-{task.attempt}-{self._number}"
        resource = f"slot:{task.node}" if task.needs_slot else f"control:{task.node}"
        future = self._client.submit(run_on_node, task, key=key, pure=False, retries=0, resources={resource: 1})
        with self._lock:
            self._in_flight[key] = (task, future)
        future.add_done_callback(self._on_done)

    def next_event(self, timeout_seconds: float) -> Event | None:
        """The next event, or None when nothing happened in time."""
        try:
            return self._events.get(timeout=timeout_seconds)
        except queue.Empty:
            return None

    def abandon(self, tasks: Sequence[AnyTask]) -> None:
        """Forget these tasks and kill what they run on nodes that still live."""
        ids = {task.id for task in tasks}
        with self._lock:
            keys = [key for key, (task, _) in self._in_flight.items() if task.id in ids]
            futures = [self._in_flight.pop(key)[1] for key in keys]
            nodes = {task.node for task in tasks}
            addresses = [address for address, node in self._addresses.items() if node in nodes]
        self._client.cancel(futures, force=True)
        self._call(stop_on_node, self._run, False, workers=addresses)

    def rest(self) -> None:
        """Between stages: let the nodes end their idle child processes."""
        with self._lock:
            addresses = list(self._addresses)
        self._call(rest_on_node, workers=addresses)

    def lease(self, wanted: Sequence[Leased], cancelled: Callable[[], bool]) -> contextlib.AbstractContextManager[None]:
        """Hold these for as long as the context lasts; waits while other runs have them."""
        return self._leases.hold(wanted, cancelled)

    @contextlib.contextmanager
    def rendezvous(self) -> Iterator[str]:
        """A store of torch's in this process: it outlives any node, so the death of one never hangs the others."""
        from datalocal.tasks.train.rendezvous import RendezvousStore

        store = RendezvousStore(self.address)
        try:
            yield store.endpoint
        finally:
            store.close()

    def ask(self, function: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
        """Call `function` on every node that is alive; answers by node name, without those that do not answer."""
        self.facts()
        with self._lock:
            nodes = dict(self._addresses)
        answers = self._call(function, *arguments, workers=list(nodes))
        return {nodes[address]: answer for address, answer in answers.items()}

    def meters(self) -> Mapping[str, Any]:
        """One reading per physical host, taken by the host's first node (so that a counter keeps its base)."""
        readers: dict[str, str] = {}
        facts = self.facts()
        with self._lock:
            by_name = {node: address for address, node in self._addresses.items()}
        for name in sorted(facts):
            readers.setdefault(facts[name].host, by_name[name])
        readings = self._call(meters_on_node, workers=list(readers.values()))
        return {host: readings[address] for host, address in readers.items() if address in readings}

    def witnesses(self) -> Mapping[str, Any]:
        """One reading by every node that has counters of its own; nodes on one loopback have none."""
        if self.cluster.kind == "embedded":
            return {}
        self.facts()
        with self._lock:
            names = dict(self._addresses)
        readings = self._call(witnesses_on_node, workers=list(names))
        return {names[address]: reading for address, reading in readings.items() if reading is not None}

    def close(self) -> None:
        """Kill everything of this run on the nodes and let go of the cluster."""
        with self._lock:
            futures = [future for _, future in self._in_flight.values()]
            self._in_flight.clear()
            addresses = list(self._addresses)
        try:
            self._client.cancel(futures, force=True)
            self._call(stop_on_node, self._run, True, workers=addresses)
        finally:
            self._client.close(timeout=5)

    def _call(self, function: Any, *arguments: Any, workers: list[str]) -> dict[str, Any]:
        """`client.run` on workers that may be going away: those that do not answer are left out."""
        if not workers:
            return {}
        found: dict[str, Any] = self._client.run(function, *arguments, workers=workers, on_error="ignore")
        return found

    def _on_done(self, future: Future) -> None:
        with self._lock:
            entry = self._in_flight.pop(future.key, None)
        if entry is None:  # abandoned, or lost with its node and already reported
            return
        task = entry[0]
        try:
            outcome: Outcome = future.result(timeout=30)
        except Exception as error:
            outcome = Outcome(cause=f"{type(error).__name__}: {error}")
        finally:
            future.release()
        if outcome.ok:
            self._events.put(TaskDone(task=task, result=outcome.result))
        else:
            self._events.put(
                TaskFailed(
                    task=task, cause=outcome.cause, trace=outcome.trace, permanent=outcome.permanent, hint=outcome.hint
                )
            )

    def _on_cluster_event(self, event: tuple[float, Any]) -> None:
        message = event[1]
        if not isinstance(message, dict) or message.get("action") != "remove-worker":
            return
        with self._lock:
            node = self._addresses.pop(message["worker"], None)
            if node is None:
                return
            keys = [key for key, (task, _) in self._in_flight.items() if task.node == node]
            lost = [self._in_flight.pop(key) for key in keys]
        for _, future in lost:
            future.cancel(force=True)
        self._events.put(NodeLost(node=node, lost=tuple(task for task, _ in lost)))
