"""Transform one shard: read once, row group by row group; decoded, transformed and encoded by the node's threads; written once."""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from datalocal.errors import StorageError, TaskError
from datalocal.ledger.records import Damaged, TaskRecord
from datalocal.spec.job import SPLIT
from datalocal.storage.client import Store
from datalocal.storage.counting import ByteCounter
from datalocal.storage.sink import SinkClient
from datalocal.tasks.before_cut import before_cut, one_thread_per_call
from datalocal.tasks.code import ensure_code, load_target
from datalocal.tasks.image_column import images_of, problem_of, with_images
from datalocal.tasks.model import NodeContext, PreprocessTask
from datalocal.tasks.shard_file import ShardFile
from datalocal.tasks.transform import Transform, make_transform
from datalocal.tasks.wires import sink_of, store_of
from datalocal.tasks.work import Chunk, Done, Workers


def run_preprocess(task: PreprocessTask, ctx: NodeContext) -> TaskRecord:
    """Transform the task's shard and write it to `{destination}/{shard}` on `task.outputs`.

    Rows keep their order, row groups of one split each stay apart, columns other than the image are carried over. Damaged images
    are left out and listed, or stop the task, as the job says. Raises TaskError for what the user's code or the data does wrong,
    StorageError for reads and writes.
    """
    return _Preprocess(task, ctx).run()


class _Preprocess:
    """One task under way."""

    def __init__(self, task: PreprocessTask, ctx: NodeContext) -> None:
        self._task, self._ctx = task, ctx
        self._counter = ByteCounter()
        self._seconds = dict.fromkeys(("read", "decode", "transform", "encode", "write"), 0.0)
        self._damaged: list[Damaged] = []
        self._images_in = self._groups = 0
        self._type: pa.DataType | None = None
        self._file: ShardFile | None = None
        self._to_stay = False
        self._split: str | None = None
        self._log_name = f"{task.stage}-{task.shard}"

    def run(self) -> TaskRecord:
        task, ctx, cut = self._task, self._ctx, self._task.cut
        started, begin = time.time(), time.monotonic()
        with contextlib.ExitStack() as stack:
            store = stack.enter_context(store_of(task.wiring, ctx, self._counter))
            sink = stack.enter_context(sink_of(task.wiring, ctx, self._counter))
            self._to_stay = store.keeps(task.outputs)
            transform, device = self._transform(sink)
            if cut is not None:
                stack.enter_context(one_thread_per_call(cut, device))
            output = f"{task.destination}/{task.shard}"
            with self._reading(store) as parquet:
                path = self._convert(parquet, transform, device, sink, stack)
            mark = time.monotonic()
            store.write(output, path, task.outputs, "output")
            self._seconds["write"] += time.monotonic() - mark
            assert self._file is not None
            elapsed = time.monotonic() - begin
            self._log(sink, f"{self._file.rows} of {self._images_in} images in {elapsed:.2f} s, attempt {task.attempt}")
            return TaskRecord(
                kind="preprocess",
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
                images_in=self._images_in,
                images_out=self._file.rows,
                row_groups=self._groups,
                output=output,
                output_bytes=self._file.size_bytes,
                output_nodes=task.outputs,
                reason=task.reason,
                damaged=tuple(self._damaged),
                bytes=self._counter.rows(),
                seconds_by_step=self._seconds,
                frozen={stage.name: cut.sha256[stage.name] for stage in cut.pipeline.before(cut.at)} if cut else {},
            )

    # -- before the first image ------------------------------------------------------------------------------------------

    def _transform(self, sink: SinkClient) -> tuple[Transform, str]:
        task, ctx, spec = self._task, self._ctx, self._task.spec
        folder = ensure_code(task.wiring.code, ctx, sink)
        if task.cut is not None:
            device = self._device()
            return before_cut(task.cut, folder, device, node=ctx.name, task=task.id), device
        target = load_target(spec.transform, folder, node=ctx.name, task=task.id)
        device = self._device()
        return make_transform(target, spec.transform, device, spec.arguments, node=ctx.name, task=task.id), device

    def _device(self) -> str:
        asked = self._task.spec.device
        if asked == "cpu":
            return "cpu"
        usable = all(node.gpus == "auto" for node in self._task.wiring.cluster.nodes if node.name == self._ctx.name)
        if usable:
            import torch  # seconds: only who may use a GPU pays for it

            usable = torch.cuda.is_available()
        if asked == "cuda" and not usable:
            raise self._bad("the job asks for device cuda, and this node has none", "set `preprocess.device: auto`")
        return "cuda" if usable else "cpu"

    @contextlib.contextmanager
    def _reading(self, store: Store) -> Iterator[pq.ParquetFile]:
        path = f"{self._task.dataset}/{self._task.shard}"
        with store.open(path, self._task.sources) as source:
            try:
                parquet = pq.ParquetFile(source, pre_buffer=True)
            except (pa.ArrowException, OSError) as error:
                raise self._unreadable(error) from None
            name, schema = self._task.columns.image, parquet.schema_arrow
            if name not in schema.names:
                raise self._bad(
                    f"{path} has no column {name!r}; its columns are {', '.join(schema.names)}",
                    "name the image column under `columns:` in the job file",
                )
            if problem := problem_of(schema.field(name).type):
                raise self._bad(f"the column {name!r} of {path} {problem}", "name the image column under `columns:`")
            yield parquet

    # -- the images ------------------------------------------------------------------------------------------------------

    def _convert(
        self, parquet: pq.ParquetFile, transform: Transform, device: str, sink: SinkClient, stack: contextlib.ExitStack
    ) -> Path:
        """Run all rows through the transform; the path of the finished file, good until `stack` is left."""
        cut = self._task.cut
        square = cut.pipeline.image_size if cut is not None else None
        workers = Workers(transform, self._task.spec, threads=self._ctx.cores, device=device, square=square)
        reader = ThreadPoolExecutor(1, thread_name_prefix="datalocal-read")
        schema = parquet.schema_arrow
        try:
            for done in self._in_order(parquet, workers, reader):
                if done.chunk.another_split and self._file is not None:
                    self._file.end_group()
                self._keep(done, schema, sink, stack)
                if cut is not None and done.chunk.ends_group and self._file is not None:
                    self._file.end_group()
        finally:
            reader.shutdown(wait=True, cancel_futures=True)
            workers.close()
        if self._file is None:
            self._file = self._create(schema, pa.binary(), stack)
        return self._file.finish()

    def _in_order(self, parquet: pq.ParquetFile, workers: Workers, reader: ThreadPoolExecutor) -> Iterator[Done]:
        """The finished chunks in the order of their rows; at most two row groups are in memory, being read or worked on."""
        pending: deque[tuple[int, Future[Done]]] = deque()
        groups, size = parquet.num_row_groups, workers.chunk_images
        self._groups = groups
        fetch: Future[list[Chunk]] | None = reader.submit(self._read, parquet, 0, size) if groups else None
        for group in range(groups):
            assert fetch is not None
            for chunk in fetch.result():
                pending.append((group, workers.submit(chunk)))
            while pending and pending[0][0] < group:
                yield pending.popleft()[1].result()
            fetch = reader.submit(self._read, parquet, group + 1, size) if group + 1 < groups else None
        while pending:
            yield pending.popleft()[1].result()

    def _read(self, parquet: pq.ParquetFile, group: int, size: int) -> list[Chunk]:
        """One row group, in chunks of `size` rows; runs in the one thread that reads."""
        mark = time.monotonic()
        try:
            table = parquet.read_row_group(group, use_threads=False)
        except (pa.ArrowException, OSError) as error:
            raise self._unreadable(error) from None
        name = self._task.columns.image
        images, others = images_of(table, name), _others(table, name, parquet.schema_arrow)
        first = self._images_in
        self._images_in += len(images)
        split, before = _split_of(others), self._split
        self._split = split if len(images) else before
        self._seconds["read"] += time.monotonic() - mark
        return [
            Chunk(
                first_row=first + at,
                encoded=images.encoded[at : at + size],
                paths=images.paths[at : at + size],
                others=others.slice(at, size),
                ends_group=at + size >= len(images),
                another_split=not at and None not in (split, before) and split != before,
            )
            for at in range(0, len(images), size)
        ]

    def _keep(self, done: Done, schema: pa.Schema, sink: SinkClient, stack: contextlib.ExitStack) -> None:
        """Take a finished chunk: note what is damaged, write the rest."""
        for step, seconds in done.seconds.items():
            self._seconds[step] += seconds
        if done.damaged:
            lost = [Damaged(shard=self._task.shard, row=row, path=path, problem=why) for row, path, why in done.damaged]
            self._damaged += lost
            lines = [f"row {image.row} {image.path or '(no path)'}: left out: {image.problem}" for image in lost]
            self._log(sink, *lines)
            if self._task.spec.damaged == "fail":
                raise self._bad(
                    f"row {lost[0].row} of {self._task.shard} {lost[0].path} is damaged: {lost[0].problem}",
                    "mend the data set, or leave damaged images out with `preprocess.damaged: skip`",
                )
        if not (images := done.images):
            return
        mark = time.monotonic()
        if self._file is None:
            self._file = self._create(schema, images[0].type, stack)
        if odd := [piece.type for piece in images if piece.type != self._type]:
            raise self._bad(
                f"{self._task.spec.transform} returned {odd[0]} for rows {done.chunk.first_row} and on of "
                f"{self._task.shard}, and {self._type} before",
                "return the same kind, type and shape for every batch",
            )
        at = schema.get_field_index(self._task.columns.image)
        columns = list(done.others().columns)
        columns.insert(at, pa.chunked_array(images))
        target = with_images(schema, self._task.columns.image, self._type)
        self._file.add(pa.Table.from_arrays(columns, schema=target), done.row_bytes)
        self._seconds["write"] += time.monotonic() - mark

    def _create(self, schema: pa.Schema, type_: pa.DataType, stack: contextlib.ExitStack) -> ShardFile:
        self._type = type_
        target = with_images(schema, self._task.columns.image, type_)
        # The order of training follows from the row groups: a pipeline's are those of its input, wherever it is cut.
        told = self._task.cut is not None
        folder = self._ctx.root / "tmp"
        return stack.enter_context(
            ShardFile(self._ctx.name, folder, target, to_stay=self._to_stay, groups_are_told=told)
        )

    # -- words -----------------------------------------------------------------------------------------------------------

    def _log(self, sink: SinkClient, *lines: str) -> None:
        text = "".join(f"{self._ctx.name}: {self._task.shard}: {line}\n" for line in lines)
        sink.log(self._task.arm, self._log_name, text)

    def _bad(self, cause: str, hint: str) -> TaskError:
        return TaskError(self._ctx.name, self._task.id, cause, hint=hint)

    def _unreadable(self, error: Any) -> Exception:
        """What reading raised: the store's own error as it is, else the replica's damage."""
        if isinstance(error, StorageError):
            return error
        path = f"{self._task.dataset}/{self._task.shard}"
        return StorageError(
            f"{self._ctx.name}: {path} cannot be read as Parquet: {error}",
            "restore the shard: ingest the data set again",
        )


def _split_of(rows: pa.Table) -> str | None:
    """The split of all these rows; None where they have several, or nobody tells."""
    if SPLIT not in rows.column_names or not rows.num_rows:
        return None
    values = pc.unique(rows.column(SPLIT)).to_pylist()
    return str(values[0]) if len(values) == 1 else None


def _others(table: pa.Table, column: str, schema: pa.Schema) -> pa.Table:
    """The columns that are carried over; with the struct's path as a column where it would be lost."""
    images = table.column(column)
    others = table.drop_columns([column])
    if "path" in with_images(schema, column, pa.binary()).names and "path" not in schema.names:
        others = others.append_column("path", pc.struct_field(images, "path").cast(pa.string()))
    return others
