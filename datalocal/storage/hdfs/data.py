"""The data path: files of HDFS opened for ranges and written whole, by hdfs-native or by libhdfs. One client per process.

A forked child must not use its parent's client (it hangs for ever): clients are made when first used, and made again in
whatever process asks.
"""

from __future__ import annotations

import os
import threading
import urllib.parse
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Protocol, TypeVar

import pyarrow as pa

from datalocal.errors import StorageError
from datalocal.spec.cluster import Storage
from datalocal.storage.hdfs.where import find_hdfs

_FAILOVER = {
    # The default waits 183 s for a NameNode that is away, in silence; ours is asked again by who calls.
    "dfs.client.failover.max.attempts": "4",
    "dfs.client.failover.sleep.base.millis": "100",
    "dfs.client.failover.sleep.max.millis": "500",
}


class RangeFile(Protocol):
    """A file open for reading: its locations are those of the moment when it was opened."""

    def read_at(self, offset: int, length: int) -> bytes | pa.Buffer:
        """Exactly `length` bytes, which lie within the file. Raises StorageError."""

    def close(self) -> None:
        """Let go of it."""


class DataClient(Protocol):
    """One way to HDFS's data. Thread-safe."""

    name: str

    def open(self, path: str) -> RangeFile:
        """The file at `path`. Raises StorageError."""

    def create(self, path: str, chunks: Iterable[pa.Buffer], *, block_bytes: int, replication: int) -> None:
        """Write a new file; returns when all of it is in HDFS. After StorageError a short file may be left at `path`."""


class NativeClient:
    """hdfs-native: HDFS's protocols in Rust, no JVM."""

    name = "native"

    def __init__(self, storage: Storage) -> None:
        try:
            import hdfs_native
        except ImportError:
            raise StorageError(
                "HDFS needs the package `hdfs-native` on every node", "install it: pip install hdfs-native"
            ) from None
        where = find_hdfs(storage)
        if storage.user is not None:
            os.environ["HADOOP_USER_NAME"] = storage.user  # the one way to tell it
        timeout = str(round(storage.socket_timeout_seconds * 1000))
        config = {**where.properties, **_FAILOVER, "dfs.client.socket-timeout": timeout}
        self._options = hdfs_native.WriteOptions
        with telling("connecting"):
            self._client = hdfs_native.Client(where.url, config)

    def open(self, path: str) -> RangeFile:
        with telling(path):
            return _NativeFile(path, self._client.read(path))

    def create(self, path: str, chunks: Iterable[pa.Buffer], *, block_bytes: int, replication: int) -> None:
        options = self._options(block_size=block_bytes, replication=replication, overwrite=True)
        with telling(path):
            writer = self._client.create(path, options)
            try:
                for chunk in chunks:
                    writer.write(chunk)
            except BaseException:
                with suppress(BaseException):  # says once more, after a while, what is on its way up
                    writer.close()
                raise
            writer.close()


class _NativeFile:
    def __init__(self, path: str, reader: Any) -> None:
        self._path, self._reader = path, reader

    def read_at(self, offset: int, length: int) -> bytes | pa.Buffer:
        with telling(self._path):
            content: bytes = self._reader.read_range(offset, length)
        if len(content) != length:
            raise StorageError(f"HDFS: {self._path}: {len(content)} of {length} bytes came from offset {offset}")
        return content

    def close(self) -> None:
        with suppress(Exception):
            self._reader.close()


class LibHdfsClient:
    """libhdfs, as Hadoop's distributions carry it: `pyarrow.fs.HadoopFileSystem`, with a JVM in this process."""

    name = "libhdfs"

    def __init__(self, storage: Storage) -> None:
        from pyarrow import fs

        url = urllib.parse.urlsplit(find_hdfs(storage).url)
        timeout = str(round(storage.socket_timeout_seconds * 1000))
        try:
            self._files = fs.HadoopFileSystem(
                url.hostname or "default",
                url.port or 0,
                user=storage.user,
                extra_conf={"dfs.client.socket-timeout": timeout},
            )
        except (OSError, pa.ArrowException) as error:
            raise StorageError(
                f"libhdfs does not load: {str(error).partition(chr(10))[0]}",
                "set ARROW_LIBHDFS_DIR, JAVA_HOME and CLASSPATH (`hadoop classpath --glob`), or use `storage.client: native`",
            ) from None

    def open(self, path: str) -> RangeFile:
        with telling(path):
            return _ArrowRangeFile(path, self._files.open_input_file(path))

    def create(self, path: str, chunks: Iterable[pa.Buffer], *, block_bytes: int, replication: int) -> None:
        # libhdfs takes block size and replication from its configuration only
        with telling(path), self._files.open_output_stream(path) as out:
            for chunk in chunks:
                out.write(chunk)


class _ArrowRangeFile:
    def __init__(self, path: str, file: Any) -> None:
        self._path, self._file = path, file

    def read_at(self, offset: int, length: int) -> bytes | pa.Buffer:
        with telling(self._path):
            self._file.seek(offset)
            content: pa.Buffer = self._file.read_buffer(length)
        if content.size != length:
            raise StorageError(f"HDFS: {self._path}: {content.size} of {length} bytes came from offset {offset}")
        return content

    def close(self) -> None:
        with suppress(OSError):
            self._file.close()


@contextmanager
def telling(path: str) -> Iterator[None]:
    """Whatever a client raises is a StorageError, also what is no Exception: a panic in Rust ends one read, not the process."""
    try:
        yield
    except (StorageError, GeneratorExit, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        told = str(error).partition("\n")[0]
        raise StorageError(f"HDFS: {path}: {told}", "`hdfs dfsadmin -report` shows which DataNodes are up") from None


Made = TypeVar("Made")


class PerProcess:
    """Something that is made once per process and key, when it is first asked for; never carried over a fork."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._made: dict[tuple[int, str], Any] = {}
        os.register_at_fork(after_in_child=self._start_anew)

    def get(self, key: str, make: Callable[[], Made]) -> Made:
        """What `make` gave for `key` in this process."""
        with self._lock:
            whole = (os.getpid(), key)
            if whole not in self._made:
                self._made[whole] = make()
            made: Made = self._made[whole]
            return made

    def _start_anew(self) -> None:
        self._lock = threading.Lock()
        self._forgotten, self._made = (
            self._made,
            {},
        )  # kept, not freed: freeing a client of the parent's runtime may hang


_clients = PerProcess()


def data_client(storage: Storage) -> DataClient:
    """This process's client. Raises StorageError when it cannot be made."""
    return _clients.get(storage.model_dump_json(), lambda: _make(storage))


def _make(storage: Storage) -> DataClient:
    if storage.client == "native":
        return NativeClient(storage)
    if storage.client == "libhdfs":
        return LibHdfsClient(storage)
    try:
        return LibHdfsClient(storage)
    except StorageError:
        return NativeClient(storage)
