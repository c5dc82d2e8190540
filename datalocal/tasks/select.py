"""Which rows of a shard validate: a random fraction, a column's value, or the user's own function."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from datalocal.catalog.model import Catalog
from datalocal.errors import StorageError, TaskError
from datalocal.spec.job import JobSpec
from datalocal.storage.client import Store
from datalocal.storage.counting import ByteCounter
from datalocal.storage.sink import SinkClient
from datalocal.tasks.code import ensure_code, load_target
from datalocal.tasks.model import NodeContext, RowMask, SelectTask
from datalocal.tasks.wires import sink_of, store_of

Mask = npt.NDArray[np.bool_]


def fraction_mask(seed: int, shard: str, rows: int, fraction: float) -> Mask:
    """[rows] True for rows that validate: a pure function of seed, shard key and row number.

    Row i's draw does not depend on how many rows follow it, nor on any other shard.
    """
    key = hashlib.blake2b(f"{seed}\0{shard}".encode(), digest_size=16).digest()
    draws = np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little"))).random(rows)
    mask: Mask = draws < fraction
    return mask


def pack(mask: Mask) -> RowMask:
    """A bool array as a RowMask."""
    return RowMask(rows=len(mask), packed=np.packbits(mask).tobytes())


def unpack(mask: RowMask) -> Mask:
    """A RowMask as a bool array."""
    if mask.packed is None:
        return np.ones(mask.rows, dtype=bool)
    return np.unpackbits(np.frombuffer(mask.packed, np.uint8), count=mask.rows).astype(bool)


def run_select(task: SelectTask, ctx: NodeContext) -> RowMask:
    """The rows of the task's shard that validate. Raises TaskError naming shard and column or function."""
    counter = ByteCounter()
    with store_of(task.wiring, ctx, counter) as store, sink_of(task.wiring, ctx, counter) as sink:
        with store.open(f"{task.dataset}/{task.shard}", task.sources) as source:
            mask = _mask(task, ctx, sink, pq.ParquetFile(source, pre_buffer=True))
        rows = [row.to_json() for row in counter.rows()]
        sink.record("bytes", {"arm": task.arm, "stage": task.stage, "rows": rows})
    return pack(mask)


MOST_SHARDS_ASKED = 2000
"""Beyond that nobody wants to wait for a plan."""


def rows_that_train(job: JobSpec, catalog: Catalog, store: Store) -> dict[str, Mask] | None:
    """Before a run: the rows of the data set that train, by shard key.

    A column is read through `store`. None where the user's function decides, which only the nodes call, where shards are too
    many, or where the column cannot be read: the run will say why.
    """
    assert job.train is not None, "only a job that trains has rows that do"
    rule = job.train.validation
    rows = dict(zip(catalog.shards, catalog.shard_rows.tolist(), strict=True))
    if rule is None:
        return {key: np.ones(count, dtype=bool) for key, count in rows.items()}
    if rule.fraction is not None:
        return {key: ~fraction_mask(job.seed, key, count, rule.fraction) for key, count in rows.items()}
    if rule.column is None or len(catalog) > MOST_SHARDS_ASKED:
        return None
    found = {}
    for number, key in enumerate(catalog.shards):
        try:
            with store.open(catalog.path(number), catalog.replicas(number), "control") as source:
                found[key] = ~_equal(_column(pq.ParquetFile(source, pre_buffer=True), rule.column), rule.value)
        except (pa.ArrowException, OSError, KeyError, StorageError):
            return None
    return found


def _mask(task: SelectTask, ctx: NodeContext, sink: SinkClient, file: pq.ParquetFile) -> Mask:
    rule = task.validation
    if rule.fraction is not None:
        return fraction_mask(task.seed, task.shard, file.metadata.num_rows, rule.fraction)
    if rule.column is not None:
        return _column_mask(task, file)
    assert rule.function is not None, "Validation has exactly one of fraction, column and function"
    function = load_target(rule.function, ensure_code(task.wiring.code, ctx, sink), node=task.node, task=task.id)
    columns = [name for name in file.schema_arrow.names if name != task.columns.image]
    answer = _call(task, function, file.read(columns=columns, use_threads=False))
    if answer.shape != (file.metadata.num_rows,) or answer.dtype != np.bool_:
        raise _bad(
            task,
            f"{rule.function} returned {answer.dtype} of shape {answer.shape} for {task.shard}",
            f"it gets a pyarrow.Table and returns one bool per row, here an array of shape ({file.metadata.num_rows},)",
        )
    return answer


def _call(task: SelectTask, function: Any, table: pa.Table) -> npt.NDArray[Any]:
    import traceback

    try:
        answer = function(table)
        if isinstance(answer, pa.Array | pa.ChunkedArray):
            answer = answer.to_numpy(zero_copy_only=False) if isinstance(answer, pa.Array) else answer.to_numpy()
        return np.asarray(answer)
    except Exception as error:  # whatever the user's function raises is told with its trace
        cause = f"{task.validation.function} raised {type(error).__name__} on {task.shard}: {error}"
        raise TaskError(
            task.node, task.id, cause, traceback.format_exc(), hint="mend the function and submit again"
        ) from None


def _column_mask(task: SelectTask, file: pq.ParquetFile) -> Mask:
    name, value = task.validation.column, task.validation.value
    assert name is not None, "asked only where the rule names a column"
    names = file.schema_arrow.names
    if name not in names:
        cause = f"{task.shard} has no column {name!r}; its columns are {', '.join(names)}"
        raise _bad(task, cause, "name one of them in `validation`")
    column = _column(file, name)
    try:
        return _equal(column, value)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError):
        raise _bad(
            task,
            f"column {name!r} of {task.shard} is {column.type} and cannot be compared with {value!r}",
            "give `validation.value` in the column's type",
        ) from None


def _column(file: pq.ParquetFile, name: str) -> pa.ChunkedArray:
    """Raises KeyError when there is none."""
    column = file.read(columns=[name], use_threads=False).column(name)
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _equal(column: pa.ChunkedArray, value: Any) -> Mask:
    """Where `column` is `value`; nulls are not. Raises pyarrow.ArrowException when the two cannot be compared."""
    mask: Mask = pc.fill_null(pc.equal(column, pa.scalar(value).cast(column.type)), False).to_numpy().astype(bool)
    return mask


def _bad(task: SelectTask, cause: str, hint: str) -> TaskError:
    return TaskError(task.node, task.id, cause, hint=hint)
