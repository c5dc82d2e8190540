"""The in-process gang: a session per rank, one model, no child processes."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from contextlib import ExitStack

from datalocal.errors import DatalocalError, TaskError
from datalocal.storage.counting import ByteCounter
from datalocal.tasks.code import ensure_code
from datalocal.tasks.model import NodeContext, TrainTask
from datalocal.tasks.threads import torch_threads
from datalocal.tasks.train.loop import run_loop_in_turns
from datalocal.tasks.train.places import plan_ranks, threads_per_rank
from datalocal.tasks.train.session import Session
from datalocal.tasks.wires import sink_of


def train_in_turns(tasks: Sequence[TrainTask], contexts: Sequence[NodeContext]) -> None:
    """Run all ranks of the gang. Raises TaskError for whatever the user's code raises."""
    sessions: list[Session] = []
    with ExitStack() as stack:
        for task, ctx in zip(tasks, contexts, strict=True):
            folder = None
            if task.wiring.code:
                with sink_of(task.wiring, ctx, ByteCounter()) as sink:
                    folder = ensure_code(task.wiring.code, ctx, sink)
            for local_rank in sorted(plan_ranks(task)):
                sessions.append(Session(task, ctx, local_rank, folder))
                stack.callback(sessions[-1].close)
        sessions.sort(key=lambda session: session.rank)
        stack.enter_context(torch_threads(max(map(threads_per_rank, tasks, contexts))))
        try:
            run_loop_in_turns(sessions)
        except DatalocalError as error:
            cause, trace = (error.cause, error.trace) if isinstance(error, TaskError) else (error.message, "")
            sessions[0].fail({"kind": "task", "cause": cause, "trace": trace})
            raise
        except Exception as error:
            cause, trace = f"{type(error).__name__}: {error}", traceback.format_exc()
            sessions[0].fail({"kind": "task", "cause": cause, "trace": trace})
            raise TaskError(
                tasks[0].node, tasks[0].id, cause, trace, hint="mend the job's code and submit again"
            ) from error
        for session in sessions:
            session.finish()
