"""The threads of a preprocess task: chunks of encoded images in, chunks of results out."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datalocal.spec.job import Preprocess
from datalocal.tasks.images import DamagedImage, Pixels, decode, decode_square
from datalocal.tasks.transform import Results, Transform, encode

_CHUNK_IMAGES = 16
"""Images that a thread takes at a time on the CPU: enough to make handing over cheap, few enough for the threads to be through
at about the same time."""

_CPU_BATCH, _GPU_BATCH = 1, 32
"""Images per call of the transform: on the CPU one, which is still in the cache when the transform looks at it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Some rows of a shard: what a thread works on at a time."""

    first_row: int
    encoded: list[pa.Buffer | None]
    paths: list[str]
    others: pa.Table
    """The columns that are carried over."""
    ends_group: bool = False
    """Whether it is the last of its row group."""
    another_split: bool = False
    """Whether it begins a row group of one split, and those before it are of one other."""


@dataclass(slots=True, kw_only=True)
class Done:
    """What came of a chunk."""

    chunk: Chunk
    kept: list[int] = field(default_factory=list)
    """Positions in the chunk of the images that were not damaged."""
    damaged: list[tuple[int, str, str]] = field(default_factory=list)
    """(row of the shard, path, problem)"""
    images: list[pa.Array] = field(default_factory=list)
    """The new image column, in pieces; empty when every image was damaged."""
    row_bytes: list[int] = field(default_factory=list)
    """About the size of each row in the output."""
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("decode", "transform", "encode"), 0.0))

    def others(self) -> pa.Table:
        """The columns that are carried over, of the images that were not damaged."""
        everything = self.chunk.others
        return everything.take(pa.array(self.kept, pa.int64())) if self.damaged else everything

    def finish(self, results: list[bytes | pa.Array]) -> Done:
        """Take what the calls of the transform gave: encoded images one by one, features of a call together.

        Belongs into the thread that made them: its core still has their bytes at hand.
        """
        for encoded, group in groupby(results, key=lambda result: isinstance(result, bytes)):
            found = list(group)
            pieces = _binary(found) if encoded else found
            self.images += pieces
            for piece in pieces:
                self.row_bytes += _row_bytes(piece)
        return self


def _row_bytes(piece: pa.Array) -> list[int]:
    if pa.types.is_binary(piece.type):
        sizes: list[int] = pc.binary_length(piece).to_pylist()
        return sizes
    return [piece.nbytes // len(piece)] * len(piece)


def _binary(values: list[bytes]) -> list[pa.Array]:
    """`values` as an Arrow array by one copy: `pa.array` has its buffer grow, and copies again and again."""
    ends = np.cumsum([0, *map(len, values)], dtype=np.int64)
    if ends[-1] > np.iinfo(np.int32).max:  # more than one array can hold
        built = pa.array(values, pa.binary())
        return list(built.chunks) if isinstance(built, pa.ChunkedArray) else [built]
    buffers = [None, pa.py_buffer(ends.astype(np.int32)), pa.py_buffer(b"".join(values))]
    return [pa.Array.from_buffers(pa.binary(), len(values), buffers)]


class Workers:
    """`threads` threads that decode, transform and encode; for a GPU, a further one is all that calls the transform."""

    def __init__(
        self, transform: Transform, spec: Preprocess, *, threads: int, device: str, square: int | None = None
    ) -> None:
        """`square`: side to which training crops images, for a transform that is to see what training would see."""
        self._transform, self._spec, self._square = transform, spec, square
        on_cpu = device == "cpu"
        self._batch = spec.batch or (_CPU_BATCH if on_cpu else _GPU_BATCH)
        self.chunk_images = -(-_CHUNK_IMAGES // self._batch) * self._batch if on_cpu else self._batch
        """Images that a chunk should have."""
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="datalocal-image")
        self._caller = None if on_cpu else ThreadPoolExecutor(1, thread_name_prefix="datalocal-transform")

    def submit(self, chunk: Chunk) -> Future[Done]:
        """Start on a chunk. The future raises TaskError for what the transform does wrong."""
        if self._caller is None:
            return self._threads.submit(self._whole, chunk)
        # A thread that waited for another's result would be a thread that does not decode: each step starts the next.
        answer: Future[Done] = Future()
        done = Done(chunk=chunk)
        decoded = self._threads.submit(self._decoded, done, 0)
        caller = self._caller

        def transform() -> None:
            _into(answer, lambda: self._handed_on(done, decoded, answer))

        caller.submit(transform)
        return answer

    def close(self) -> None:
        """Wait for what is under way, drop the rest."""
        for pool in (self._caller, self._threads):
            if pool is not None:
                pool.shutdown(wait=True, cancel_futures=True)

    def _whole(self, chunk: Chunk) -> Done:
        done = Done(chunk=chunk)
        results: list[bytes | pa.Array] = []
        for at in range(0, len(chunk.encoded), self._batch):
            results += self._encoded(done, self._transformed(done, self._decoded(done, at)))
        return done.finish(results)

    def _handed_on(self, done: Done, decoded: Future[list[Pixels]], answer: Future[Done]) -> None:
        results = self._transformed(done, decoded.result())
        self._threads.submit(
            lambda: _into(answer, lambda: answer.set_result(done.finish(self._encoded(done, results))))
        )

    def _decoded(self, done: Done, at: int) -> list[Pixels]:
        """The pixels of the batch that begins at image `at` of the chunk."""
        begin = time.monotonic()
        chunk, pixels = done.chunk, []
        for number, encoded in enumerate(chunk.encoded[at : at + self._batch], at):
            try:
                pixels.append(self._pixels(encoded))
                done.kept.append(number)
            except DamagedImage as damage:
                done.damaged.append((chunk.first_row + number, chunk.paths[number], damage.problem))
        done.seconds["decode"] += time.monotonic() - begin
        return pixels

    def _pixels(self, encoded: pa.Buffer | None) -> Pixels:
        most = self._spec.max_pixels
        if self._square is not None:
            return decode_square(encoded, self._square, max_pixels=most)
        return decode(encoded, max_pixels=most, min_side=self._spec.decode_min_side)

    def _transformed(self, done: Done, pixels: list[Pixels]) -> Results:
        begin = time.monotonic()
        results = self._transform(pixels) if pixels else []
        done.seconds["transform"] += time.monotonic() - begin
        return results

    def _encoded(self, done: Done, results: Results) -> list[bytes | pa.Array]:
        begin = time.monotonic()
        encoded = encode(results, self._transform, self._spec.jpeg_quality) if len(results) else []
        done.seconds["encode"] += time.monotonic() - begin
        return encoded


def _into(answer: Future[Done], act: Callable[[], object]) -> None:
    """Run `act`; what it raises becomes the answer."""
    try:
        act()
    except BaseException as error:  # the thread that waits for the answer raises it
        answer.set_exception(error)
