"""One rank's process. Started by torch's elastic launcher, never by a person.

Sets the environment that `torch.distributed` reads to the *plan's* rank: the launcher numbers nodes in the order in which
they arrive. That is safe because the ranks' store is served by an agent (TORCHELASTIC_USE_AGENT_STORE): no rank hosts it,
so none is special before `init_process_group`.
"""

from __future__ import annotations

import json
import os
import pickle
import runpy
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from datalocal.errors import DatalocalError, StorageError, TaskError
from datalocal.tasks.model import NodeContext, TrainTask
from datalocal.tasks.train.outcome import Failure
from datalocal.tasks.train.places import plan_ranks, threads_per_rank
from datalocal.tasks.train.stub import ADDRESS
from datalocal.tasks.train.watch import die_with_parent

_TRACE_LINES = 60


def main() -> None:
    """Run this rank; exit status 1 when it fails, after the run was told why."""
    die_with_parent(os.getppid() if ADDRESS in os.environ else int(os.environ["DATALOCAL_TRAIN_AGENT"]))
    task, ctx, folder = pickle.loads(Path(os.environ["DATALOCAL_TRAIN_TASK"]).read_bytes())  # noqa: S301  # our own agent's
    local_rank = int(os.environ["LOCAL_RANK"])
    rank = plan_ranks(task)[local_rank]
    os.environ |= environment(task, local_rank, rank)
    if folder is not None:
        sys.path.insert(0, str(folder))
    status = _run(task, ctx, folder, local_rank, rank)
    if (
        task.spec.script is None
    ):  # nothing of ours waits for the interpreter's end, which takes a second with torch in it
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def environment(task: TrainTask, local_rank: int, rank: int) -> dict[str, str]:
    """What torch and the user's script find in the environment."""
    here = {"RANK": str(rank), "ROLE_RANK": str(rank), "GROUP_RANK": str(task.nodes.index(task.node))}
    if task.device == "cuda":  # the rank's GPU is the only one that it sees, so it is number 0
        return here | {"CUDA_VISIBLE_DEVICES": task.gpus[local_rank], "LOCAL_RANK": "0"}
    return here | {"CUDA_VISIBLE_DEVICES": ""}


def script_arguments(arguments: Mapping[str, Any]) -> list[str]:
    """`{lr: 0.1, sizes: [1, 2], quick: true}` as `--lr 0.1 --sizes 1 2 --quick true`; None is left out."""
    words: list[str] = []
    for key, value in arguments.items():
        if value is not None:
            values: Sequence[Any] = value if isinstance(value, list | tuple) else [value]
            words += [f"--{key}", *(each if isinstance(each, str) else json.dumps(each) for each in values)]
    return words


def _run(task: TrainTask, ctx: NodeContext, folder: Path | None, local_rank: int, rank: int) -> int:
    import torch

    from datalocal import training
    from datalocal.tasks.train.session import Session

    torch.set_num_threads(threads_per_rank(task, ctx))
    session: Session | None = None
    try:
        session = Session(task, ctx, local_rank, folder)
        training.open_session(session)
        if task.spec.script is not None:
            _run_script(task, folder)
        else:
            from datalocal.tasks.train.loop import run_loop

            run_loop(session)
        session.finish()
    except BaseException as error:  # whatever ends the rank is told before the process goes
        failure = _failure(error, rank)
        told = session is not None and _tell(session, failure)
        Path(os.environ["DATALOCAL_TRAIN_FAILURE"]).write_text(json.dumps(failure.to_json() | {"told": told}))
        print(failure.trace or failure.cause, file=sys.stderr, flush=True)  # noqa: T201  # the rank's own log
        os._exit(1)  # destructors of a broken process group may wait for ever
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return 0


def _run_script(task: TrainTask, folder: Path | None) -> None:
    if folder is None or task.spec.script is None:
        raise TaskError(task.node, task.id, f"the script {task.spec.script} did not travel with the job")
    script = str(folder / task.spec.script)
    sys.argv = [script, *script_arguments(task.spec.arguments)]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as exit_:
        if exit_.code not in (None, 0):
            raise TaskError(task.node, task.id, f"{task.spec.script} exited with status {exit_.code}") from exit_


def _tell(session: Any, failure: Failure) -> bool:
    try:
        session.fail({"kind": failure.kind, "cause": failure.cause, "trace": failure.trace})
    except (DatalocalError, OSError):
        return False
    return True


def _failure(error: BaseException, rank: int) -> Failure:
    trace = "".join(traceback.format_exception(error))
    trace = "\n".join(trace.splitlines()[-_TRACE_LINES:])
    now = time.time()
    if isinstance(error, TaskError):
        return Failure(kind="task", cause=error.cause, trace=error.trace, hint=error.hint, rank=rank, when=now)
    if isinstance(error, StorageError):
        return Failure(kind="storage", cause=f"rank {rank}: {error.message}", hint=error.hint, rank=rank, when=now)
    if _lost_peers(error):
        cause = f"rank {rank} lost the other ranks: {type(error).__name__}: {error}"
        return Failure(kind="peers", cause=cause, trace=trace, rank=rank, when=now)
    cause = f"rank {rank}: {type(error).__name__}: {error}"
    hint = "the code of the job raised; mend it and submit again"
    return Failure(kind="task", cause=cause, trace=trace, rank=rank, when=now, hint=hint)


def _lost_peers(error: BaseException) -> bool:
    """Whether this is how torch tells that another rank is gone (gloo raises a plain RuntimeError)."""
    import torch.distributed as dist

    if isinstance(error, dist.DistNetworkError | dist.DistBackendError | dist.DistStoreError):
        return True
    signs = ("gloo", "Connection closed by peer", "Connection reset by peer", "Broken pipe")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


if __name__ == "__main__":
    main()
