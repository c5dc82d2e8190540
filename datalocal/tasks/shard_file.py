"""A shard on its way to the stores: row groups that readers like, in a file that nobody has to tidy away."""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

from datalocal.errors import StorageError

MIN_GROUP_ROWS = 100
MAX_GROUP_ROWS = 500
WRITER_OPTIONS: dict[str, Any] = {"compression": "none", "use_dictionary": False, "write_statistics": False}
GROUP_BYTES = 16 << 20
"""A row group is what a reader has in memory at once: this large at most, unless that were fewer than 100 images."""


class ShardFile:
    """Takes tables and writes them as one Parquet file of row groups of 100 to 500 rows (the last may be smaller).

    The file has no name: whoever dies, it is gone. Uncompressed (images are compressed already), without dictionaries and
    statistics; equal tables, added in the same order, give equal bytes. With `to_stay` its row groups go to the disk as they
    come, so that whoever gives it a name has little left to wait for. With `groups_are_told` a row group ends where
    `end_group` says so, and nowhere else. Raises StorageError naming `node` when the disk does not take it.
    """

    def __init__(
        self, node: str, folder: Path, schema: pa.Schema, *, to_stay: bool = False, groups_are_told: bool = False
    ) -> None:
        self._node, self._folder, self._to_stay = node, folder, to_stay
        self._groups_are_told = groups_are_told
        self._waiting: list[pa.Table] = []
        self.rows = 0
        self.content_bytes = 0
        """Bytes of what was added; the file is a little larger."""
        self._row_bytes: list[int] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = _unnamed(folder)
            # Arrow's own stream: a Python file would have every page copied to a bytes object first
            self._stream = pa.OSFile(str(self._path), "wb")
            self._writer = pq.ParquetWriter(self._stream, schema, **WRITER_OPTIONS)
        except OSError as error:
            raise self._failed(error) from None

    def __enter__(self) -> ShardFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()
        self._file.close()

    def add(self, table: pa.Table, row_bytes: list[int]) -> None:
        """Append rows; `row_bytes` is about the size of each."""
        self._waiting.append(table)
        self._row_bytes += row_bytes
        self.rows += table.num_rows
        self.content_bytes += sum(row_bytes)
        while not self._groups_are_told and (group := self._group_rows()) is not None:
            self._write(group)

    def end_group(self) -> None:
        """What was added since the last one is a row group."""
        if self._row_bytes:
            self._write(len(self._row_bytes))

    def finish(self) -> Path:
        """Write what is left; the path is good until this object is closed."""
        self.end_group()
        try:
            self._writer.close()
            self._stream.close()
        except OSError as error:
            raise self._failed(error) from None
        return self._path

    @property
    def size_bytes(self) -> int:
        """Bytes of the finished file."""
        return os.fstat(self._file.fileno()).st_size

    @property
    def _path(self) -> Path:
        return Path(f"/proc/self/fd/{self._file.fileno()}")

    def _group_rows(self) -> int | None:
        """Rows of the row group that the waiting rows fill, or None while they do not fill one."""
        total = 0
        for row, size in enumerate(self._row_bytes, 1):
            total += size
            if row == MAX_GROUP_ROWS or (row >= MIN_GROUP_ROWS and total >= GROUP_BYTES):
                return row
        return None

    def _write(self, rows: int) -> None:
        table = pa.concat_tables(self._waiting)
        try:
            self._writer.write_table(table.slice(0, rows), row_group_size=rows)
            if self._to_stay:
                os.fdatasync(self._file.fileno())
        except OSError as error:
            raise self._failed(error) from None
        rest = table.slice(rows)
        self._waiting = [rest] if rest.num_rows else []
        del self._row_bytes[:rows]

    def _failed(self, error: Any) -> StorageError:
        return StorageError(
            f"{self._node}: a shard cannot be written below {self._folder}: {error}", "make room on that disk"
        )


def _unnamed(folder: Path) -> BinaryIO:
    """A file without a name, to which one can be given later where the file system knows how."""
    try:
        descriptor = os.open(folder, os.O_RDWR | os.O_TMPFILE, 0o666)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR):  # told by file systems and kernels that do not know it
            raise
        return cast("BinaryIO", tempfile.TemporaryFile(dir=folder, buffering=0))
    return cast("BinaryIO", os.fdopen(descriptor, "r+b", buffering=0))
