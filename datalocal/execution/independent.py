"""Run independent tasks (staging, preprocess, row selection) to the end, whatever dies on the way."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from datalocal.errors import TaskError
from datalocal.execution.arm import Arm
from datalocal.execution.base import NodeLost, TaskDone, TaskFailed
from datalocal.execution.dispatch import Dispatching, GiveUp, Instruction, Replaced, Start
from datalocal.placement.model import Assignment
from datalocal.tasks.model import AnyTask

MakeTask = Callable[[Assignment, int], AnyTask]


def run_independent(
    arm: Arm,
    stage: str,
    dispatch: Dispatching,
    *,
    make_task: MakeTask,
    on_result: Callable[[AnyTask, Any], None],
) -> None:
    """Obey `dispatch` until it is finished. Raises TaskError when a shard failed for good, PlacementError when none can take it."""
    running: dict[str, AnyTask] = {}
    try:
        _obey(arm, stage, dispatch.begin(), make_task, running)
        if dispatch.finished:
            return
        for event in arm.events():
            if event is not None:
                _obey(arm, stage, _tell(arm, dispatch, event, on_result, running), make_task, running)
            _obey(arm, stage, dispatch.tick(), make_task, running)
            if dispatch.finished:
                return
    finally:
        if running:
            arm.executor.abandon(list(running.values()))


def _tell(
    arm: Arm,
    dispatch: Dispatching,
    event: TaskDone | TaskFailed | NodeLost,
    on_result: Callable[[AnyTask, Any], None],
    running: dict[str, AnyTask],
) -> list[Instruction]:
    match event:
        case TaskDone(task=task, result=result):
            if running.pop(task.id, None) is None:  # given up already: its second finish changes nothing
                return []
            on_result(task, result)
            return dispatch.done(_shard(task))
        case TaskFailed(task=task):
            if running.pop(task.id, None) is None:
                return []
            return dispatch.failed(
                _shard(task), event.cause, trace=event.trace, permanent=event.permanent, hint=event.hint
            )
        case NodeLost(node=node):
            arm.record("node_lost", node=node)
            for task_id in [task_id for task_id, task in running.items() if task.node == node]:
                del running[task_id]
            return dispatch.lost(node)


def _obey(
    arm: Arm, stage: str, instructions: Iterable[Instruction], make_task: MakeTask, running: dict[str, AnyTask]
) -> None:
    for instruction in instructions:
        match instruction:
            case Start(assignment=assignment, attempt=attempt):
                task = make_task(assignment, attempt)
                running[task.id] = task
                arm.executor.start(task)
            case Replaced():
                arm.record(
                    "replaced",
                    stage=stage,
                    shard=instruction.shard,
                    cause=instruction.cause,
                    attempt=instruction.attempt,
                    **{"from": instruction.from_node, "to": instruction.to_node},
                )
            case GiveUp():
                raise TaskError(
                    instruction.node,
                    f"{stage} of {instruction.shard}",
                    instruction.cause,
                    instruction.trace,
                    arm.log_path(task_id(arm.policy, stage, instruction.shard)),
                    instruction.hint,
                )


def task_id(policy: str, stage: str, shard: str) -> str:
    """The same shard in the same stage of the same arm is the same task, whoever runs it."""
    return f"{policy}.{stage}.{shard}"


def _shard(task: AnyTask) -> str:
    shard: str = getattr(task, "shard")  # noqa: B009  # every independent task has one; TrainTask never comes here
    return shard
