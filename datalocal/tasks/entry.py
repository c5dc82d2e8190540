"""Which function runs which task."""

from __future__ import annotations

from typing import Any

from datalocal.tasks.model import AnyTask, NodeContext, PreprocessTask, SelectTask, StagingTask, TrainTask


def run_task(task: AnyTask, context: NodeContext) -> Any:
    """Run `task` on the node that `context` describes and return what it produced.

    The imports are here because a node that only copies shards should not pay for torch.
    """
    match task:
        case StagingTask():
            from datalocal.tasks.staging import run_staging

            return run_staging(task, context)
        case PreprocessTask():
            from datalocal.tasks.preprocess import run_preprocess

            return run_preprocess(task, context)
        case SelectTask():
            from datalocal.tasks.select import run_select

            return run_select(task, context)
        case TrainTask():
            from datalocal.tasks.train.agent import run_train

            return run_train(task, context)
