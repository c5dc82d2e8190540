"""One file of HDFS, open for random access: reopened after a slow or failed read, every byte counted by who really sent it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pyarrow as pa

from datalocal.errors import StorageError
from datalocal.ledger.records import TrafficClass
from datalocal.spec.cluster import Storage
from datalocal.storage.counting import ByteCounter
from datalocal.storage.hdfs.attribution import divide, senders, served_by
from datalocal.storage.hdfs.data import RangeFile, data_client
from datalocal.storage.hdfs.holders import node_at, node_at_address
from datalocal.storage.hdfs.namenode import NameNode
from datalocal.storage.hdfs.webhdfs import Block, FileStatus, Location
from datalocal.storage.hdfs.wire import traced_bytes
from datalocal.storage.random_access import RandomAccessFile

_ATTEMPTS = 3
_AWAY_SECONDS = 120.0
"""How long a DataNode that did not answer is left alone."""
UNKNOWN = "unknown"
"""Source of bytes whose sender could not be seen; it is off every rack."""

Detour = Callable[[str, str, int, int], pa.Buffer]
"""(node, path, offset, length) -> the bytes, read by that node and sent on; counted there and here."""


class Silent:
    """DataNodes that did not answer lately, shared by all files of a process: each costs its timeout once. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._until: dict[str, float] = {}

    def add(self, address: str) -> None:
        with self._lock:
            self._until[address] = time.monotonic() + _AWAY_SECONDS

    def now(self) -> set[str]:
        with self._lock:
            return {address for address, until in self._until.items() if until > time.monotonic()}


silent = Silent()


@dataclass(frozen=True, slots=True, kw_only=True)
class Reader:
    """Who reads, and how: the same for all files of a store."""

    node: str
    storage: Storage
    namenode: NameNode
    node_of_host: Mapping[str, str]
    counter: ByteCounter
    detour: Detour
    """Another node's way to the bytes, where a DataNode is known to be silent."""
    count_questions: Callable[[], None] = lambda: None
    """Called after each operation of the data client: counts what it asked the NameNode."""
    known: dict[str, tuple[FileStatus, list[Block]]] = field(default_factory=dict)
    """Shards never change in place: what a file's blocks are is asked once per store, where they lie again after trouble."""

    def locate(self, path: str, *, anew: bool) -> tuple[FileStatus, list[Block]]:
        """The file and its blocks. Raises MissingError and StorageError."""
        if anew or path not in self.known:
            status = self.namenode.status(path)
            self.known[path] = status, [] if status.is_folder else self.namenode.blocks(status, path)
        return self.known[path]


class HdfsFile(RandomAccessFile):
    """A file of HDFS. Raises StorageError when it is a folder, MissingError when it is not there."""

    def __init__(self, reader: Reader, path: str, class_: TrafficClass) -> None:
        self._reader, self._path, self._class = reader, path, class_
        status, self._blocks = reader.locate(path, anew=class_ not in ("input", "exchange"))
        if status.is_folder:
            raise StorageError(f"HDFS: {path} is a folder")
        super().__init__(status.bytes)
        self._erasure_coded = status.erasure_coded
        self._file: RangeFile | None = None

    def _read_at(self, offset: int, length: int) -> pa.Buffer:
        parts = [self._read_part(block, at, count) for block, at, count in _parts(self._blocks, offset, length)]
        if len(parts) == 1:
            return parts[0]
        content = pa.allocate_buffer(length)
        out = pa.FixedSizeBufferWriter(content)
        for part in parts:
            out.write(part)
        if out.tell() != length:
            raise StorageError(f"HDFS: {self._path}: its blocks hold {out.tell()} of {length} bytes from {offset}")
        return content

    def _read_part(self, block: Block, offset: int, length: int) -> pa.Buffer:
        """Bytes within one block: one operation of one DataNode, where all is well."""
        problems: list[str] = []
        for _ in range(_ATTEMPTS):
            if (by := self._way_around(block)) is not None:
                try:
                    return self._reader.detour(by, self._path, offset, length)
                except StorageError as error:
                    problems.append(error.message)
            try:
                return self._read_direct(block, offset, length)
            except StorageError as error:
                if error.message not in problems:
                    problems.append(error.message)
                self._renew(block)
                block = next((each for each in self._blocks if each.offset == block.offset), block)
        raise StorageError(
            f"{self._reader.node}: {self._path} cannot be read from any of its replicas "
            f"({', '.join(self._names(block)) or 'none is known'}): {'; '.join(problems)}",
            "`hdfs fsck PATH -files -blocks -locations` shows where its blocks are",
        )

    def _read_direct(self, block: Block, offset: int, length: int) -> pa.Buffer:
        began = time.monotonic()
        with senders(self._reader.storage.datanode_port) as seen:
            if self._file is None:
                self._file = data_client(self._reader.storage).open(self._path)
            content = pa.py_buffer(self._file.read_at(offset, length))
        start = offset - block.offset
        traced = 0 if self._erasure_coded else traced_bytes(start, start + length, block.bytes)
        self._count(seen.received, content.size, traced)
        self._reader.count_questions()
        if time.monotonic() - began > 0.8 * self._reader.storage.socket_timeout_seconds:
            self._renew(block)
        return content

    def _count(self, received: Mapping[str, int], size_bytes: int, traced: int) -> None:
        received = served_by(received, traced)
        shares, expected = divide(received, size_bytes), divide(received, traced)
        for address, share in shares.items():
            source = node_at_address(address, self._blocks, self._reader.node_of_host)
            self._reader.counter.add(
                self._class,
                source,
                self._reader.node,
                share,
                traced_bytes=expected.get(address, 0),
                operations=1,
                socket_bytes=received[address],
            )
        if not shares:
            self._reader.counter.add(self._class, UNKNOWN, self._reader.node, size_bytes, traced_bytes=traced)

    def _renew(self, block: Block) -> None:
        """After a slow or failed read: note who is silent and open the file again, with the locations as they are now."""
        self._let_go()
        port, http = self._reader.storage.datanode_port, self._reader.storage.datanode_http_port
        for address in _not_answering(block.locations, (port, http)):
            silent.add(address)
        _, self._blocks = self._reader.locate(self._path, anew=True)

    def _way_around(self, block: Block) -> str | None:
        """A node with a replica to read through, where HDFS's client might ask a DataNode that is known to be silent."""
        away = silent.now()
        if not any(location.ip in away for location in block.locations):
            return None
        well = [location for location in block.locations if location.ip not in away]
        nodes = [node_at(location, self._reader.node_of_host) for location in well]
        if self._reader.node in nodes:  # the own DataNode comes first in every list
            return None
        return next((node for node in nodes if node is not None), None)

    def _names(self, block: Block) -> Sequence[str]:
        return [location.host or location.ip for location in block.locations]

    def _let_go(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()


def _parts(blocks: Sequence[Block], offset: int, length: int) -> list[tuple[Block, int, int]]:
    """A range of the file, cut at its blocks' boundaries: (block, offset in the file, length)."""
    end = offset + length
    found = []
    for block in blocks:
        start, stop = max(offset, block.offset), min(end, block.offset + block.bytes)
        if start < stop:
            found.append((block, start, stop - start))
    return found


def _not_answering(locations: Sequence[Location], ports: Sequence[int], timeout_seconds: float = 2.0) -> list[str]:
    """The DataNodes that take no connection, or take it and say nothing: stopped, or behind a link that drops.

    One that refuses the connection is no such one: it costs no time.
    """

    def answers(address: str) -> bool:
        data, http = ports
        try:
            socket.create_connection((address, data), timeout_seconds).close()
            with socket.create_connection((address, http), timeout_seconds) as connection:
                connection.sendall(b"GET /jmx?qry=none HTTP/1.0\r\nHost: datanode\r\n\r\n")
                return bool(connection.recv(1))
        except ConnectionRefusedError:
            return True
        except OSError:
            return False

    addresses = list(dict.fromkeys(location.ip for location in locations))
    if not addresses:
        return []
    with ThreadPoolExecutor(len(addresses)) as pool:
        return [address for address, well in zip(addresses, pool.map(answers, addresses), strict=True) if not well]
