"""The threads of a preprocess task: chunks of encoded images in, chunks of results out."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from datalocal.spec.job import Preprocess
from datalocal.tasks.images import DamagedImage, Pixels, decode
from datalocal.tasks.transform import Results, Transform, encode

_MEMORY_BYTES = 64 << 20
"""Memory that a thread keeps for decoded images; larger batches are allocated as they come."""

_NOBODY_ELSE = 3
"""References to a block that is free: the list's, a local name's, and that of the call which counts them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """Some rows of a shard: one call of the transform."""

    first_row: int
    encoded: list[pa.Buffer | None]
    paths: list[str]
    others: pa.Table
    """The columns that are carried over."""


@dataclass(slots=True, kw_only=True)
class Done:
    """What came of a chunk."""

    first_row: int
    others: pa.Table
    """Of the images that were not damaged."""
    images: pa.Array | None = None
    """The new image column; None when every image was damaged."""
    damaged: list[tuple[int, str, str]] = field(default_factory=list)
    """(row of the shard, path, problem)"""
    seconds: dict[str, float] = field(default_factory=dict)
    pixels: list[Pixels] = field(default_factory=list)
    row_bytes: list[int] = field(default_factory=list)
    """About the size of each row in the output."""


class _Memory(threading.local):
    """Memory for decoded images, used again by the same thread once nobody refers to it.

    Fresh memory for 32 pictures at a time would be handed back to the system after each batch, and every page of it cleared
    again for the next: a fifth of the time of a small transform.
    """

    def __init__(self, images: int) -> None:
        self._blocks: list[Pixels | None] = [None] * images
        self._next = self._held_bytes = 0

    def allocate(self, size_bytes: int) -> Pixels | None:
        self._next = (self._next + 1) % len(self._blocks)
        block = self._blocks[self._next]
        if block is not None and block.size >= size_bytes and sys.getrefcount(block) == _NOBODY_ELSE:
            return block
        held = self._held_bytes + size_bytes - (block.size if block is not None else 0)
        if held > _MEMORY_BYTES:
            return None
        self._held_bytes = held
        block = self._blocks[self._next] = np.empty(size_bytes, np.uint8)
        return block


class Workers:
    """`threads` threads that decode, transform and encode; with `one_caller`, a further one is all that calls the transform."""

    def __init__(self, transform: Transform, spec: Preprocess, *, threads: int, one_caller: bool) -> None:
        self._transform, self._spec = transform, spec
        self._memory = _Memory(spec.batch)
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="datalocal-image")
        self._caller = ThreadPoolExecutor(1, thread_name_prefix="datalocal-transform") if one_caller else None

    def submit(self, chunk: Chunk) -> Future[Done]:
        """Start on a chunk. The future raises TaskError for what the transform does wrong."""
        if self._caller is None:
            return self._threads.submit(lambda: self._encoded(*self._transformed(self._decoded(chunk))))
        # A thread that waited for another's result would be a thread that does not decode: each step starts the next.
        answer: Future[Done] = Future()
        decoded = self._threads.submit(self._decoded, chunk)
        caller = self._caller

        def transform() -> None:
            _into(answer, lambda: self._handed_on(decoded, answer))

        caller.submit(transform)
        return answer

    def close(self) -> None:
        """Wait for what is under way, drop the rest."""
        for pool in (self._caller, self._threads):
            if pool is not None:
                pool.shutdown(wait=True, cancel_futures=True)

    def _handed_on(self, decoded: Future[Done], answer: Future[Done]) -> None:
        done, results = self._transformed(decoded.result())
        self._threads.submit(lambda: _into(answer, lambda: answer.set_result(self._encoded(done, results))))

    def _decoded(self, chunk: Chunk) -> Done:
        begin = time.monotonic()
        done = Done(first_row=chunk.first_row, others=chunk.others)
        kept = []
        most, side, allocate = self._spec.max_pixels, self._spec.decode_min_side, self._memory.allocate
        for number, encoded in enumerate(chunk.encoded):
            try:
                done.pixels.append(decode(encoded, max_pixels=most, min_side=side, allocate=allocate))
                kept.append(number)
            except DamagedImage as damage:
                done.damaged.append((chunk.first_row + number, chunk.paths[number], damage.problem))
        if done.damaged:
            done.others = chunk.others.take(pa.array(kept, pa.int64()))
        done.seconds["decode"] = time.monotonic() - begin
        return done

    def _transformed(self, done: Done) -> tuple[Done, Results]:
        begin = time.monotonic()
        results = self._transform(done.pixels) if done.pixels else []
        done.pixels = []
        done.seconds["transform"] = time.monotonic() - begin
        return done, results

    def _encoded(self, done: Done, results: Results) -> Done:
        begin = time.monotonic()
        if len(results):
            done.images = encode(results, self._transform, self._spec.jpeg_quality)
            done.row_bytes = _row_bytes(done.images)
        done.seconds["encode"] = time.monotonic() - begin
        return done


def _row_bytes(images: pa.Array) -> list[int]:
    if pa.types.is_binary(images.type):
        lengths: list[int] = pc.binary_length(images).to_pylist()
        return lengths
    return [images.nbytes // len(images)] * len(images)


def _into(answer: Future[Done], act: Callable[[], object]) -> None:
    """Run `act`; what it raises becomes the answer."""
    try:
        act()
    except BaseException as error:  # the thread that waits for the answer raises it
        answer.set_exception(error)
