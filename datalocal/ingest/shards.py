"""Samples to shards: row groups that readers like, each shard below the block size."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from datalocal.errors import DatasetError
from datalocal.ingest.model import Sample, Source
from datalocal.spec.job import SPLIT
from datalocal.tasks.shard_file import GROUP_BYTES, MAX_GROUP_ROWS, MIN_GROUP_ROWS, ShardFile

_FOOTER_BYTES_PER_COLUMN = 400
"""What one column of one row group costs besides its values (page header, footer entry): more than we have ever seen."""

Emit = Callable[[int, Path], None]
"""Takes shard number and finished file; the file is gone afterwards."""


def shard_schema(source: Source) -> pa.Schema:
    """image, label (where there are labels), path, and the source's own columns. Raises DatasetError: a name is taken."""
    fields = [pa.field("image", pa.binary())]
    if source.labelled:
        fields.append(pa.field("label", pa.int64()))
    fields.append(pa.field("path", pa.string()))
    taken = sorted({field.name for field in fields} & set(source.carried.names))
    if taken:
        raise DatasetError(
            f"the column {taken[0]!r} of the source cannot be carried over: the shard has a column of that name",
            "rename it in the source",
        )
    metadata = {"datalocal": json.dumps({"classes": list(source.classes)})} if source.classes else None
    return pa.schema([*fields, *source.carried], metadata=metadata)


MOST_SPLITS = 4
"""A column with more values than this in one row group is another thing by the same name."""


class ShardWriter:
    """Takes samples in order and hands out finished shards; one row group is in memory, the rest of the shard in `scratch`.

    Of the rows that would make a row group, those of each split make one of their own.
    """

    def __init__(self, source: Source, *, block_bytes: int, scratch: Path, emit: Emit) -> None:
        self._schema = shard_schema(source)
        self._number = {name: number for number, name in enumerate(source.classes)}
        self._scratch, self._emit = scratch, emit
        overhead = _empty_bytes(self._schema) + self._group_overhead
        self.largest_bytes = block_bytes - overhead
        """Bytes of one row that still fit into a shard."""
        if self.largest_bytes <= 0:
            raise DatasetError(
                f"the columns and class names alone need {overhead} bytes of a block of {block_bytes}",
                "raise block_bytes in the cluster config",
            )
        groups = -(-self.largest_bytes // GROUP_BYTES)
        self._budget_bytes = self.largest_bytes // groups - self._group_overhead
        """Of a row group: a whole number of them fills a shard, else half a block might stay empty."""
        self._group: list[dict[str, Any]] = []
        self._sizes: list[int] = []
        self._splits: set[str] = set()
        self._group_bytes = 0
        self._file: ShardFile | None = None
        self._file_bytes = 0
        self.shards = self.rows = 0

    @property
    def _group_overhead(self) -> int:
        return _FOOTER_BYTES_PER_COLUMN * sum(_leaves(field.type) for field in self._schema)

    def add(self, sample: Sample) -> str:
        """Take a sample; the problem, if it has one that keeps it out."""
        row: dict[str, Any] = {"image": sample.image, "path": sample.path, **sample.carried}
        if "label" in self._schema.names and "label" not in sample.carried:
            row["label"] = self._class_number(sample.label)
        size = _row_bytes(row)
        if size > self.largest_bytes:
            return f"{size} bytes, more than the {self.largest_bytes} that fit into a block"
        at_most = self._budget_bytes if len(self._group) >= MIN_GROUP_ROWS else self.largest_bytes
        split = str(sample.carried[SPLIT]) if SPLIT in sample.carried else ""
        beside = (_groups(self._splits | {split}) - 1) * self._group_overhead
        if self._group_bytes + size + beside > at_most:
            self._flush()
        self._splits.add(split)
        self._group.append(row)
        self._sizes.append(size)
        self._group_bytes += size
        if len(self._group) == MAX_GROUP_ROWS:
            self._flush()
        return ""

    def _class_number(self, label: int | str | None) -> int | None:
        if isinstance(label, str):
            return self._number[label]
        return None if label is None else int(label)  # int: booleans are classes 0 and 1

    def finish(self) -> None:
        """Hand out what is left."""
        self._flush()
        self._close(emit=True)

    def discard(self) -> None:
        """Let go of an unfinished shard."""
        self._close(emit=False)

    def _flush(self) -> None:
        """The waiting rows become a row group, of this shard or, when they would make it too large, of the next one."""
        if not self._group:
            return
        needed = self._group_bytes + _groups(self._splits) * self._group_overhead
        if self._file is not None and self._file_bytes + needed > self.largest_bytes:
            self._close(emit=True)
        if self._file is None:
            self._file = ShardFile("head", self._scratch, self._schema, groups_are_told=True)
            self._file_bytes = 0
        for numbers in self._by_split():
            table = pa.Table.from_pylist([self._group[i] for i in numbers], schema=self._schema)
            self._file.add(table, [self._sizes[i] for i in numbers])
            self._file.end_group()
        self._file_bytes += needed
        self.rows += len(self._group)
        self._group, self._sizes, self._splits, self._group_bytes = [], [], set(), 0
        pa.default_memory_pool().release_unused()  # mimalloc keeps what row groups of unlike sizes leave behind

    def _by_split(self) -> list[list[int]]:
        """The waiting rows, in order, of each row group that they will be."""
        if _groups(self._splits) == 1:
            return [list(range(len(self._group)))]
        groups: dict[str, list[int]] = {}
        for number, row in enumerate(self._group):
            groups.setdefault(str(row[SPLIT]), []).append(number)
        return list(groups.values())

    def _close(self, *, emit: bool) -> None:
        if self._file is None:
            return
        with self._file as file:
            self._file = None
            if emit:
                self._emit(self.shards, file.finish())
                self.shards += 1


def _groups(splits: set[str]) -> int:
    """Row groups that rows of these splits make."""
    return len(splits) if len(splits) <= MOST_SPLITS else 1


def _empty_bytes(schema: pa.Schema) -> int:
    """Bytes of a shard without rows."""
    out = pa.BufferOutputStream()
    pq.write_table(schema.empty_table(), out)
    return int(out.getvalue().size)


def _leaves(type_: pa.DataType) -> int:
    """Columns that Parquet makes of a column of this type."""
    return sum(_leaves(type_.field(i).type) for i in range(type_.num_fields)) if type_.num_fields else 1


def _row_bytes(value: Any) -> int:
    """At most what a value takes in Parquet: its bytes, a length, and levels of nesting."""
    if isinstance(value, dict):
        return 8 + sum(map(_row_bytes, value.values()))
    if isinstance(value, list):
        return 8 + sum(map(_row_bytes, value))
    if isinstance(value, bytes):
        return 40 + len(value)  # a large value has a page, with its header, for itself
    if isinstance(value, str):
        return 8 + len(value.encode("utf-8", "surrogatepass"))
    return 40  # numbers, times and decimals have 32 bytes at most
