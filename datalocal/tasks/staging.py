"""Copy one shard to this node's folder, byte for byte, as it comes in."""

from __future__ import annotations

import time

from datalocal.errors import StorageError
from datalocal.ledger.records import TaskRecord
from datalocal.storage.client import Store
from datalocal.storage.counting import ByteCounter
from datalocal.tasks.model import NodeContext, StagingTask
from datalocal.tasks.wires import sink_of, store_of
from datalocal.units import format_bytes

_CHUNK_BYTES = 4 << 20


def run_staging(task: StagingTask, ctx: NodeContext) -> TaskRecord:
    """Copy the task's shard from its sources to `{destination}/{shard}` here, whole or not at all. Raises StorageError.

    Both sides count as `staging`: what was read, from where, and what was written to the own disk.
    """
    started, begin = time.time(), time.monotonic()
    counter, path = ByteCounter(), f"{task.destination}/{task.shard}"
    seconds = {"read": 0.0, "write": 0.0}
    with (
        store_of(task.wiring, ctx, counter) as store,
        sink_of(task.wiring, ctx, counter) as sink,
    ):
        size_bytes = _copy(store, task, path, seconds)
        elapsed = time.monotonic() - begin
        text = f"{ctx.name}: {path}: {format_bytes(size_bytes)} copied in {elapsed:.2f} s, attempt {task.attempt}\n"
        sink.log(task.arm, f"{task.stage}-{task.shard}", text)
    return TaskRecord(
        kind="staging",
        task=task.id,
        arm=task.arm,
        stage=task.stage,
        shard=task.shard,
        planned_node=task.node,
        node=ctx.name,
        attempt=task.attempt,
        executor=ctx.executor,
        started=started,
        seconds=time.monotonic() - begin,
        output=path,
        output_bytes=size_bytes,
        output_nodes=(ctx.name,),
        reason=task.reason,
        bytes=counter.rows(),
        seconds_by_step=seconds,
    )


def _copy(store: Store, task: StagingTask, path: str, seconds: dict[str, float]) -> int:
    if store.folder is None:
        raise StorageError(f"{store.node}: nothing can be staged here: this node has no folder of its own")
    with store.open(f"{task.dataset}/{task.shard}", task.sources, "staging") as source:
        size_bytes = int(source.size())
        with store.folder.create(path, size_bytes) as copy:
            mark = time.monotonic()
            while (chunk := source.read_buffer(_CHUNK_BYTES)).size:
                read = time.monotonic()
                copy.write(chunk)
                store.counter.add("staging", store.node, store.node, chunk.size, "measured.writer")
                seconds["read"] += read - mark
                mark = time.monotonic()
                seconds["write"] += mark - read
    return size_bytes
