"""Footers and labels of shards in HDFS, read by nodes that hold them; only the answers travel."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from datalocal.errors import StorageError
from datalocal.ledger.records import ByteRow
from datalocal.spec.job import Columns
from datalocal.storage.hdfs.webhdfs import FileStatus
from datalocal.storage.listing import ShardListing, describe, shard_from_json

_PAGE_SECONDS = 2.0
_REMEMBERED = 20_000

OpenKey = Callable[[str], pa.NativeFile]


class Inspector:
    """What is in shards, remembered by content: a file that HDFS has not changed is read once. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[tuple[str, str, tuple[int, int], Columns], ShardListing] = {}

    def look(self, dataset: str, file: FileStatus, columns: Columns, open_key: OpenKey) -> ShardListing | None:
        """The shard `file` (its path is the key); None for a file without a suffix that is no Parquet."""
        key = (dataset, file.path, file.identity, columns)
        with self._lock:
            if key in self._known:
                return self._known[key]
        try:
            with open_key(f"{dataset}/{file.path}") as source, pq.ParquetFile(source) as parquet:
                found = describe(parquet, file.path, file.bytes, columns.image, columns.label)
        except (StorageError, pa.ArrowException, OSError, ValueError) as error:
            if "." not in file.path.rpartition("/")[2] and isinstance(error, pa.ArrowException):
                return None
            message = error.message if isinstance(error, StorageError) else str(error).partition("\n")[0]
            return ShardListing(key=file.path, bytes=file.bytes, error=message)
        with self._lock:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            self._known[key] = found
        return found


def question(dataset: str, files: Sequence[FileStatus], columns: Columns) -> dict[str, Any]:
    """What is asked of a node."""
    told = [{"key": file.path, "bytes": file.bytes, "identity": list(file.identity)} for file in files]
    return {"dataset": dataset, "files": told, "image": columns.image, "label": columns.label}


def answer(body: Mapping[str, Any], look: Callable[[FileStatus, Columns], ShardListing | None]) -> dict[str, Any]:
    """A node's answer: as many of the files as a short call allows, in order, at least one."""
    columns = Columns(image=body["image"], label=body["label"])
    stop = time.monotonic() + _PAGE_SECONDS
    shards: list[dict[str, Any] | None] = []
    for told in body["files"]:
        file = FileStatus(
            path=told["key"],
            is_folder=False,
            bytes=told["bytes"],
            block_bytes=0,
            replication=0,
            identity=(told["identity"][0], told["identity"][1]),
            erasure_coded=False,
        )
        found = look(file, columns)
        shards.append(None if found is None else asdict(found))
        if time.monotonic() > stop:
            break
    return {"shards": shards}


def from_answer(content: Mapping[str, Any]) -> tuple[list[ShardListing | None], list[ByteRow]]:
    """Shards in the order of the question, as far as the node came, and what it read for them."""
    shards = [None if shard is None else shard_from_json(shard) for shard in content["shards"]]
    return shards, [ByteRow.from_json(row) for row in content["rows"]]
