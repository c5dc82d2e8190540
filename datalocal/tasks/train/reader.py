"""The input pipeline: row groups from the store, decoded by threads into reused batches, in an order fixed by the seed.

One thread fetches row groups a window ahead, into the next epoch too; `threads` threads decode the next batch while the current
one is in use.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from datalocal.errors import TaskError
from datalocal.placement.gang import Segment
from datalocal.spec.job import Columns
from datalocal.tasks.model import RowMask
from datalocal.tasks.train.buffers import Allocate, BatchMemory, plain_memory
from datalocal.tasks.train.columns import Arrays, EncodedImages, class_numbers, images_of, parquet_columns
from datalocal.tasks.train.crop import Cropper, DamagedRow, decode_whole
from datalocal.tasks.train.order import WINDOW_GROUPS, Window, dealt, windows

OpenShard = Callable[[str, Sequence[str]], pa.NativeFile]
"""(shard key, nodes to read from) -> the shard's file."""

_MIN_CHUNK = 8
"""Images per decode job: enough to make a job's overhead vanish, few enough to share a small batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RawBatch:
    """Samples of one step of one rank, in host memory.

    The arrays are the reader's own memory, used again once nobody refers to them: keep a reference as long as you need them.
    """

    images: npt.NDArray[Any]
    """uint8 [n, S, S, 3] RGB; for a fixed-size-list column its values [n, ...]."""
    labels: npt.NDArray[np.int64]
    """[n] class numbers; [0] where the job has no label column."""
    shards: tuple[str, ...]
    """The shards that samples came from."""
    shard_of: npt.NDArray[np.int64]
    """[n] position in `shards`."""
    rows: npt.NDArray[np.int64]
    """[n] row in the shard's file."""

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Pass:
    """One reading of a rank's share: which samples, in which order, and how they fall into steps."""

    segments: Sequence[Segment]
    masks: Mapping[str, RowMask]
    """By shard key; every row of a shard without one."""
    bounds: npt.NDArray[np.int64]
    """[steps + 1] step i uses samples `bounds[i]:bounds[i + 1]` of the rank's order."""
    seed: int
    epoch: int
    rank: int
    start_step: int = 0
    """Earlier steps were made already."""
    shuffle: bool = True
    row_by_row: bool = False
    """Segments count rows in the order of `order.dealt`."""
    window_groups: int | None = None
    """None: those of the reader."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Group:
    """The selected rows of one segment, in memory."""

    images: EncodedImages | Arrays
    labels: npt.NDArray[np.int64]
    local: npt.NDArray[np.int64]
    """[samples] number within `images` and `labels`."""
    rows: npt.NDArray[np.int64]
    """[len(images)] row of the file."""
    shard: str


class ShardReader:
    """Reads shares of one data set, epoch after epoch. Not for use from several threads.

    `where` (node, task) names the reader in errors; `open_exchanged` opens what is read from elsewhere only for the sake of the
    shuffle, so that its bytes are told apart. Raises TaskError for what is wrong with the data (a damaged image, an
    unknown label, a missing column), naming shard and row; StorageError when a shard cannot be read.
    """

    def __init__(
        self,
        open_shard: OpenShard,
        columns: Columns,
        *,
        labels: Sequence[str] = (),
        image_size: int | None = None,
        max_pixels: int = 50_000_000,
        threads: int = 1,
        where: tuple[str, str] = ("this node", "reader"),
        allocate: Allocate = plain_memory,
        window_groups: int = WINDOW_GROUPS,
        open_exchanged: OpenShard | None = None,
    ) -> None:
        self._columns, self._labels = columns, tuple(labels)
        self._open = {False: open_shard, True: open_exchanged or open_shard}
        self._size, self._max_pixels, self._where = image_size, max_pixels, where
        self._cropper = Cropper(image_size, max_pixels) if image_size is not None else None
        self._allocate, self._window_groups = allocate, window_groups
        self._threads = max(1, threads)
        self._fetcher = ThreadPoolExecutor(1, thread_name_prefix="datalocal-fetch")
        self._decoders = ThreadPoolExecutor(self._threads, thread_name_prefix="datalocal-decode")
        self._footers: dict[str, pq.FileMetaData] = {}
        self._prefetched: _Fetching | None = None
        self._memory: BatchMemory | None = None
        self._capacity = 0

    def close(self) -> None:
        """Stop the threads; what is under way is thrown away."""
        for pool in (self._fetcher, self._decoders):
            pool.shutdown(wait=False, cancel_futures=True)

    def prefetch(self, what: Pass) -> None:
        """Fetch the first window of a pass that will be read: at its beginning nothing has to be waited for then.

        Only the latest such pass is kept. What is wrong with its data is raised when it is read.
        """
        self._prefetched = self._fetching(what)
        self._prefetched.advance()

    def batches(self, what: Pass, then: Pass | None = None) -> Iterator[RawBatch]:
        """The batches of a pass, from its `start_step` on. While the last window is in use the first one of `then` is fetched.

        Steps before `start_step` are neither decoded nor, where a whole row group falls away, read.
        """
        fetching = self._prefetched
        if fetching is None or fetching.what is not what:  # what was fetched ahead may still come, after a validation
            fetching = self._fetching(what)
        else:
            self._prefetched = None
        bounds = what.bounds
        pending: deque[Callable[[], RawBatch]] = deque()
        window: _Loaded | None = None
        for step in range(what.start_step, len(bounds) - 1):
            pieces: list[tuple[_Loaded, int, int]] = []
            at, stop = int(bounds[step]), int(bounds[step + 1])
            while at < stop:
                if window is None or at >= window.stop:
                    window = fetching.take()
                    if then is not None and fetching.done:
                        self.prefetch(then)
                upto = min(stop, window.stop)
                pieces.append((window, at - window.window.first, upto - window.window.first))
                at = upto
            pending.append(self._start(pieces, stop - int(bounds[step])))
            if len(pending) > 1:
                yield pending.popleft()()
        while pending:
            yield pending.popleft()()

    def _fetching(self, what: Pass) -> _Fetching:
        return _Fetching(self._fetcher, self._fetch, what, what.window_groups or self._window_groups)

    def shape(self, segment: Segment, masks: Mapping[str, RowMask]) -> tuple[tuple[int, ...], np.dtype[Any]]:
        """Shape and type of one image, for a rank that has none of its own: from the first sample of `segment`."""
        if self._size is not None and not self._reads_arrays(segment):
            return (self._size, self._size, 3), np.dtype(np.uint8)
        return self._shape_of(self._fetch(segment, masks))

    def _reads_arrays(self, segment: Segment) -> bool:
        type_ = self._field(self._footer(segment), segment.shard).type
        return pa.types.is_fixed_size_list(type_) or isinstance(type_, pa.FixedShapeTensorType)

    def _start(self, pieces: list[tuple[_Loaded, int, int]], count: int) -> Callable[[], RawBatch]:
        """Have the threads decode one batch; the result waits for it."""
        if not count:
            return lambda: _empty_batch()
        images = self._batch_memory(pieces[0], count).take()[:count]
        labels, rows = np.empty(count if self._columns.label else 0, np.int64), np.empty(count, np.int64)
        shard_of = np.empty(count, np.int64)
        shards = sorted({segment.shard for loaded, _, _ in pieces for segment in loaded.window.segments})
        number = {shard: i for i, shard in enumerate(shards)}
        chunk = max(_MIN_CHUNK, -(-count // (2 * self._threads)) if self._threads > 1 else count)
        jobs: list[Future[None]] = []
        offset = 0

        def fill(loaded: _Loaded, lo: int, hi: int, place: int) -> None:
            segment_of, sample_of = loaded.window.segment_of[lo:hi], loaded.window.sample_of[lo:hi]
            for segment in np.unique(segment_of).tolist():  # one row group after the other: its pages stay in the cache
                group = loaded.group(segment)
                here = np.flatnonzero(segment_of == segment)
                local, places = group.local[sample_of[here]], here + place
                rows[places], shard_of[places] = group.rows[local], number[group.shard]
                if len(labels):
                    labels[places] = group.labels[local]
                self._place(group, local, places.tolist(), images)

        for loaded, lo, hi in pieces:
            for at in range(lo, hi, chunk):
                end = min(hi, at + chunk)
                jobs.append(self._decoders.submit(fill, loaded, at, end, offset))
                offset += end - at

        def wait() -> RawBatch:
            for job in jobs:
                job.result()
            return RawBatch(images=images, labels=labels, shards=tuple(shards), shard_of=shard_of, rows=rows)

        return wait

    def _place(self, group: _Group, local: npt.NDArray[np.int64], places: list[int], out: npt.NDArray[Any]) -> None:
        """Put images `local` of the group at `places` of the batch."""
        images = group.images
        if isinstance(images, Arrays):
            out[places] = images.values[local]
            return
        try:
            if self._cropper is not None:
                self._cropper.decode(images, local, places, out)
            else:
                self._place_whole(group, images, local, places, out)
        except DamagedRow as damage:
            raise self._damaged(group, damage.row, damage) from None

    def _place_whole(
        self,
        group: _Group,
        images: EncodedImages,
        local: npt.NDArray[np.int64],
        places: list[int],
        out: npt.NDArray[Any],
    ) -> None:
        for row, place in zip(local.tolist(), places, strict=True):
            whole = decode_whole(images, row, max_pixels=self._max_pixels)
            if whole.shape != out.shape[1:]:
                raise self._bad(
                    group.shard,
                    f"the image in row {group.rows[row]} of {group.shard} is {whole.shape[1]}x{whole.shape[0]}, "
                    f"the first one was {out.shape[2]}x{out.shape[1]}",
                    "give `train.image_size`, or preprocess the images to one size",
                )
            out[place] = whole

    def _batch_memory(self, piece: tuple[_Loaded, int, int], count: int) -> BatchMemory:
        if self._memory is None or count > self._capacity:
            loaded, lo, _ = piece
            group = loaded.group(int(loaded.window.segment_of[lo]))
            shape, dtype = self._shape_of(group)
            self._capacity = count + 1  # a rank's steps differ by at most one sample
            self._memory = BatchMemory((self._capacity, *shape), dtype, self._allocate)
        return self._memory

    def _shape_of(self, group: _Group) -> tuple[tuple[int, ...], np.dtype[Any]]:
        if isinstance(group.images, Arrays):
            return group.images.values.shape[1:], group.images.values.dtype
        if self._size is not None:
            return (self._size, self._size, 3), np.dtype(np.uint8)
        row = int(group.local[0])
        try:
            return decode_whole(group.images, row, max_pixels=self._max_pixels).shape, np.dtype(np.uint8)
        except DamagedRow as damage:
            raise self._damaged(group, row, damage) from None

    def _fetch(self, segment: Segment, masks: Mapping[str, RowMask], dealing: tuple[int, int] | None = None) -> _Group:
        """Read the row group of `segment`: only the needed columns, once; of a small piece of it keep only that."""
        footer = self._footer(segment)
        self._field(footer, segment.shard)
        with self._open[segment.exchanged](segment.shard, segment.sources) as source:
            file = pq.ParquetFile(source, metadata=footer, pre_buffer=True)
            wanted = parquet_columns(file.schema_arrow, self._columns.image, self._columns.label)
            table = file.read_row_group(segment.group, columns=wanted, use_threads=False)
        first = sum(footer.row_group(i).num_rows for i in range(segment.group))
        chosen = selected_rows(masks.get(segment.shard), first, table.num_rows)
        if dealing is not None:
            chosen = chosen[dealt(*dealing, segment.shard, segment.group, len(chosen))]
        chosen = chosen[segment.start : segment.stop]
        if len(chosen) != segment.samples:
            raise self._bad(
                segment.shard,
                f"{segment.shard}, row group {segment.group} has {len(chosen)} of the {segment.samples} rows that were planned",
                "the shard was changed after the plan was made; submit the job again",
            )
        rows, local = np.arange(first, first + table.num_rows), chosen
        used = table
        if len(chosen) <= table.num_rows // 2:  # the rest of the row group would lie in memory as long as the window
            used, rows, local = table.take(chosen), first + chosen, np.arange(len(chosen))
        try:
            images, labels = self._values(used)
        except ValueError:
            try:
                self._values(table)  # the row that it names is then that of the row group
            except ValueError as named:
                problem = named
            raise self._bad(
                segment.shard, f"{segment.shard}, row group {segment.group} (from row {first}): {problem}"
            ) from None
        return _Group(images=images, labels=labels, local=local, rows=rows, shard=segment.shard)

    def _values(self, table: pa.Table) -> tuple[EncodedImages | Arrays, npt.NDArray[np.int64]]:
        """Images and class numbers of a row group. Raises ValueError."""
        labels = np.empty(0, np.int64)
        if self._columns.label:
            labels = class_numbers(table.column(self._columns.label), self._labels)
        return images_of(table.column(self._columns.image)), labels

    def _footer(self, segment: Segment) -> pq.FileMetaData:
        footer = self._footers.get(segment.shard)
        if footer is None:
            with self._open[segment.exchanged](segment.shard, segment.sources) as source:
                footer = self._footers[segment.shard] = pq.read_metadata(source)
        return footer

    def _field(self, footer: pq.FileMetaData, shard: str) -> pa.Field:
        """The image column's field. Raises TaskError when a column is missing."""
        schema = footer.schema.to_arrow_schema()
        for name in filter(None, (self._columns.image, self._columns.label)):
            if name not in schema.names:
                cause = f"{shard} has no column {name!r}; its columns are {', '.join(schema.names)}"
                raise self._bad(shard, cause, "name the columns under `columns:` in the job file")
        return schema.field(self._columns.image)

    def _damaged(self, group: _Group, row: int, damage: DamagedRow) -> TaskError:
        return self._bad(
            group.shard,
            f"the image in row {group.rows[row]} of {group.shard} cannot be used: {damage}",
            "ingest and preprocess leave such images out; read the data set through one of them",
        )

    def _bad(self, shard: str, cause: str, hint: str = "") -> TaskError:
        node, task = self._where
        return TaskError(node, task, cause, hint=hint or f"look at {shard} with `datalocal catalog`")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Loaded:
    """A window whose row groups are being fetched; None for those that a resumed epoch no longer needs."""

    window: Window
    groups: list[Future[_Group] | None]

    @property
    def stop(self) -> int:
        return self.window.first + self.window.samples

    def group(self, segment: int) -> _Group:
        """The row group of this segment; waits for it."""
        future = self.groups[segment]
        assert future is not None, "a sample of a skipped row group was asked for"
        return future.result()


class _Fetching:
    """The windows of one pass in order, one ahead of the one in use."""

    def __init__(self, pool: ThreadPoolExecutor, fetch: Callable[..., _Group], what: Pass, groups: int) -> None:
        self.what = what
        self._pool, self._fetch = pool, fetch
        self._begin = int(what.bounds[what.start_step]) if len(what.bounds) > what.start_step else 0
        self._dealing = (what.seed, what.epoch) if what.row_by_row else None
        self._plan = (
            window
            for window in windows(
                what.segments, seed=what.seed, epoch=what.epoch, rank=what.rank, groups=groups, shuffle=what.shuffle
            )
            if window.first + window.samples > self._begin
        )
        self._ahead: deque[_Loaded] = deque()

    @property
    def done(self) -> bool:
        """Whether the last window was taken."""
        return not self._ahead

    def advance(self) -> None:
        """Have the row groups of the next window fetched, if there is one more."""
        window = next(self._plan, None)
        if window is None:
            return
        needed = set(np.unique(window.segment_of[max(0, self._begin - window.first) :]).tolist())
        groups = [
            self._pool.submit(self._fetch, segment, self.what.masks, self._dealing) if i in needed else None
            for i, segment in enumerate(window.segments)
        ]
        self._ahead.append(_Loaded(window=window, groups=groups))

    def take(self) -> _Loaded:
        """The next window; the one after it is under way from now on."""
        if not self._ahead:
            self.advance()
        window = self._ahead.popleft()
        self.advance()
        return window


def selected_rows(mask: RowMask | None, first: int, rows: int) -> npt.NDArray[np.int64]:
    """Rows of a row group (counted from its own beginning) that the mask of its shard selects, in file order."""
    if mask is None or mask.packed is None:
        return np.arange(rows, dtype=np.int64)
    bits = np.unpackbits(np.frombuffer(mask.packed, np.uint8), count=mask.rows)
    return np.flatnonzero(bits[first : first + rows]).astype(np.int64)


def _empty_batch() -> RawBatch:
    none = np.empty(0, np.int64)
    return RawBatch(images=np.empty((0,), np.uint8), labels=none, shards=(), shard_of=none, rows=none)
