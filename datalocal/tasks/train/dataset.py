"""Parquet shards as a torch IterableDataset, for training outside a run: in a notebook, under plain torchrun, in a test."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.utils.data import IterableDataset, get_worker_info

from datalocal.errors import DatasetError
from datalocal.placement.gang import Segment
from datalocal.spec.job import Columns
from datalocal.tasks.train.order import step_bounds
from datalocal.tasks.train.reader import Pass, ShardReader


class ShardDataset(IterableDataset[tuple[torch.Tensor, torch.Tensor]]):
    """Batches `(images, labels)` from local Parquet files: the same reader, order and crop as in a run.

    `images` is uint8 [n, S, S, 3] (RGB, NHWC; `training.to_float` makes it NCHW floats), or the values of a fixed-size-list
    column; `labels` is int64 [n]. Each sample comes exactly once per epoch over all ranks, and every rank gets the same
    number of batches, at most one of them smaller by one sample: row groups are split where ranks meet.

    `files`: Parquet files or a folder. `labels`: names in class order, needed for string labels. `threads` decode. Batches
    are whole: use `DataLoader(dataset, batch_size=None)` or iterate it directly. With `num_workers` above 0 the loader's
    workers divide the rank's samples. Call `set_epoch` before each epoch. Raises DatasetError and TaskError for data that
    cannot be used.
    """

    def __init__(
        self,
        files: Path | str | Sequence[Path | str],
        *,
        batch: int,
        image_size: int | None = None,
        image: str = "image",
        label: str | None = "label",
        labels: Sequence[str] = (),
        seed: int = 0,
        rank: int = 0,
        world: int = 1,
        threads: int = 1,
        shuffle: bool = True,
        max_pixels: int = 50_000_000,
    ) -> None:
        super().__init__()
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} of {world}")
        self._paths = _parquet_files(files)
        self._columns = Columns(image=image, label=label)
        self._labels, self._size, self._max_pixels = tuple(labels), image_size, max_pixels
        self._batch, self._seed, self._rank, self._world = batch, seed, rank, world
        self._threads, self._shuffle = threads, shuffle
        self._groups = [
            (str(path), group, metadata.row_group(group).num_rows)
            for path, metadata in ((path, pq.read_metadata(path)) for path in self._paths)
            for group in range(metadata.num_row_groups)
        ]
        self._epoch = 0
        self._reader: tuple[int, ShardReader] | None = None

    @property
    def samples(self) -> int:
        """Samples of one epoch over all ranks."""
        return sum(rows for _, _, rows in self._groups)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next pass."""
        self._epoch = epoch

    def __len__(self) -> int:
        """Batches per epoch of every rank (without DataLoader workers)."""
        return self._steps(self._world)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        worker = get_worker_info()
        workers, number = (worker.num_workers, worker.id) if worker is not None else (1, 0)
        world, rank = self._world * workers, self._rank * workers + number
        segments = self._segments(rank, world)
        bounds = step_bounds(sum(segment.samples for segment in segments), self._steps(world))
        what = Pass(
            segments=segments,
            masks={},
            bounds=bounds,
            seed=self._seed,
            epoch=self._epoch,
            rank=rank,
            shuffle=self._shuffle,
        )
        for raw in self._own_reader().batches(what):
            if len(raw):
                yield torch.from_numpy(raw.images), torch.from_numpy(raw.labels)

    def _own_reader(self) -> ShardReader:
        """This process's reader, kept for the next pass: its batch memory is warm and its footers are read."""
        if self._reader is None or self._reader[0] != os.getpid():  # threads do not survive a loader worker's fork
            reader = ShardReader(
                _open_file,
                self._columns,
                labels=self._labels,
                image_size=self._size,
                max_pixels=self._max_pixels,
                threads=self._threads,
            )
            self._reader = (os.getpid(), reader)
        return self._reader[1]

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_reader": None}

    def _steps(self, world: int) -> int:
        return math.ceil(math.ceil(self.samples / world) / self._batch)

    def _segments(self, rank: int, world: int) -> list[Segment]:
        """Samples `rank * n / world` to `(rank + 1) * n / world` of all rows in file order."""
        begin, end = rank * self.samples // world, (rank + 1) * self.samples // world
        segments, first = [], 0
        for path, group, rows in self._groups:
            start, stop = max(begin - first, 0), min(end - first, rows)
            if start < stop:
                segments.append(Segment(shard=path, group=group, start=start, stop=stop, sources=()))
            first += rows
        return segments


def _open_file(shard: str, _sources: Sequence[str]) -> pa.NativeFile:
    return pa.memory_map(shard)


def _parquet_files(files: Path | str | Sequence[Path | str]) -> list[Path]:
    given: list[Any] = [files] if isinstance(files, Path | str) else list(files)
    found: list[Path] = []
    for entry in map(Path, given):
        inside = (path for path in entry.rglob("*.parquet") if not path.name.startswith((".", "_")))
        found += sorted(inside) if entry.is_dir() else [entry]
    missing = [str(path) for path in found if not path.is_file()]
    if missing or not found:
        where = ", ".join(missing or map(str, given))
        raise DatasetError(f"no Parquet file at {where}", "give files, or a folder that holds *.parquet")
    return found
