"""What runs inside a node's dask worker: tasks go to child processes, training to an agent of its own."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from datalocal.execution.memory import MemoryBound
from datalocal.execution.task_process import Outcome, TaskProcess, outcome_of
from datalocal.tasks.model import AnyTask, NodeContext, StagingTask, TrainTask

if TYPE_CHECKING:
    from datalocal.metering.witness import Witnesses


class NodeRuntime:
    """The node's side of the executor: one per node process."""

    def __init__(
        self, context: NodeContext, witnesses: Witnesses | None = None, *, memory_bytes: int | None = None
    ) -> None:
        self.context = context
        self._witnesses = witnesses
        self._reading_witnesses = threading.Lock()
        self._bound = MemoryBound(memory_bytes) if memory_bytes is not None else None
        if self._bound is not None:
            self._bound.start()
        self._lock = threading.Lock()
        self._idle: dict[tuple[str, str], list[TaskProcess]] = {}
        self._busy: dict[TaskProcess, str] = {}
        self._stopped: set[str] = set()
        self._meters: Any = None

    def run(self, task: AnyTask) -> Outcome:
        """Run one task and say what became of it; never raises."""
        run = task.wiring.run
        if run in self._stopped:
            return Outcome(cause="the run was cancelled", permanent=True)
        if isinstance(task, TrainTask | StagingTask):  # training has an agent of its own, a copy runs no user code
            return outcome_of(task, self.context)
        process = self._take(run, task.wiring.code)
        try:
            return self._explained(process.run(task), process)
        finally:
            self._give_back(run, task.wiring.code, process)

    def _explained(self, outcome: Outcome, process: TaskProcess) -> Outcome:
        told = self._bound.reason(process.pid) if self._bound else ""
        return (
            replace(outcome, cause=told, hint="smaller batches, fewer slots, or more memory_bytes") if told else outcome
        )

    def _take(self, run: str, code: str) -> TaskProcess:
        with self._lock:
            for key in [key for key in self._idle if key != (run, code)]:  # another run's code and memory go away
                for other in self._idle.pop(key):
                    other.kill()
            idle = self._idle.setdefault((run, code), [])
            process = idle.pop() if idle else None
            if process is None or not process.alive:
                process = TaskProcess(self.context)
            self._busy[process] = run
            return process

    def _give_back(self, run: str, code: str, process: TaskProcess) -> None:
        with self._lock:
            self._busy.pop(process, None)
            if process.alive and run not in self._stopped:
                self._idle.setdefault((run, code), []).append(process)

    def rest(self) -> None:
        """End idle children, so that no memory or CUDA context is held between stages."""
        with self._lock:
            for processes in self._idle.values():
                for process in processes:
                    process.kill()
            self._idle.clear()

    def stop(self, run: str, *, for_good: bool) -> None:
        """Kill whatever `run` has running here. `for_good` also refuses what of it is still on its way."""
        import sys

        with self._lock:
            if for_good:
                self._stopped.add(run)
            for process in [process for process, owner in self._busy.items() if owner == run]:
                process.kill()
        agent = sys.modules.get("datalocal.tasks.train.agent")  # not imported: nothing of it runs
        if agent is not None:
            agent.stop_training(run)
            if for_good:  # between the stages of a run torch stays warm, after it no memory is held
                agent.cool_down()
        self.rest()

    def resume(self, run: str) -> None:
        """Take tasks of a run again that was stopped here and is resumed."""
        with self._lock:
            self._stopped.discard(run)

    def read_meters(self) -> dict[str, Any]:
        """A reading of this host's meters; the accumulator stays open so that counters keep their base."""
        from datalocal.metering import MeterAccumulator

        with self._lock:
            if self._meters is None:
                self._meters = MeterAccumulator()
            reading: dict[str, Any] = self._meters.read()
            return reading

    def read_witnesses(self) -> dict[str, Any] | None:
        """A reading of the byte counters that are this node's alone; None where it has none."""
        if self._witnesses is None:
            return None
        with self._reading_witnesses:
            return self._witnesses.read()


_runtime: NodeRuntime | None = None


def install(runtime: NodeRuntime) -> None:
    """Make `runtime` the one that dask's task threads of this process use."""
    global _runtime
    _runtime = runtime


def runtime() -> NodeRuntime:
    """The runtime of this node process."""
    if _runtime is None:
        raise RuntimeError("this dask worker was not started by `datalocal`: it has no node folder and no token")
    return _runtime


def run_on_node(task: AnyTask) -> Outcome:
    """The one function that the executor submits to dask."""
    return runtime().run(task)


def stop_on_node(run: str, for_good: bool) -> None:
    """Called through dask's `client.run`."""
    runtime().stop(run, for_good=for_good)


def resume_on_node(run: str) -> None:
    """Called through dask's `client.run`."""
    runtime().resume(run)


def rest_on_node() -> None:
    """Called through dask's `client.run`."""
    runtime().rest()


def meters_on_node() -> dict[str, Any]:
    """Called through dask's `client.run`."""
    return runtime().read_meters()


def witnesses_on_node() -> dict[str, Any] | None:
    """Called through dask's `client.run`."""
    return runtime().read_witnesses()
