"""One shard, open for random access: from this node's own replica, else over the wire, from whichever source still answers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

import pyarrow as pa

from datalocal.errors import StorageError
from datalocal.ledger.records import TrafficClass
from datalocal.storage.counting import ByteCounter
from datalocal.storage.files import Folder, check_path
from datalocal.storage.peer import Peer, PeerAway
from datalocal.storage.random_access import RandomAccessFile

PIECE_BYTES = 8 << 20
"""Bytes per call: with a deadline per call, a source that hangs is given up after seconds, however large the range."""


class Sources(Protocol):
    """What a reader needs of its Store: where it is, whom it can ask, and who failed before."""

    node: str
    folder: Folder | None
    counter: ByteCounter

    def peer(self, node: str) -> Peer:
        """The store of `node`. Raises StorageError when there is none."""

    def ordered(self, sources: Iterable[str]) -> list[str]:
        """Own node first, nodes that failed before last."""

    def note(self, node: str, *, away: bool) -> None:
        """Remember whether `node` answered."""


class ReplicaFile(RandomAccessFile):
    """A file in the nodes' folders: the own replica, or those of others over Flight."""

    def __init__(self, store: Sources, path: str, sources: Sequence[str], class_: TrafficClass) -> None:
        check_path(path, store.node)
        self._store, self._path, self._sources, self._class = store, path, tuple(sources), class_
        self._local: pa.NativeFile | None = None
        self._lock = threading.Lock()
        super().__init__(self._try_each(self._stat))

    def _let_go(self) -> None:
        with self._lock:
            if self._local is not None:
                self._local.close()

    def _stat(self, node: str) -> int:
        if self._is_own(node):
            assert self._store.folder is not None
            self._local = self._store.folder.open(self._path)
            return int(self._local.size())
        return int(self._store.peer(node).ask("stat", {"path": self._path})["bytes"])

    def _read_at(self, offset: int, length: int) -> pa.Buffer:
        own_problem = ""
        if self._local is not None:
            try:
                return self._read_local(offset, length)
            except OSError as error:  # a bad sector, a file cut short: the other replicas are as good
                own_problem = f"{self._store.node}: {error.strerror or error}"
                self._sources = tuple(node for node in self._sources if not self._is_own(node))
                self._local = None
        content = pa.allocate_buffer(length)
        out = pa.FixedSizeBufferWriter(content)

        def fill(node: str) -> None:
            if self._is_own(node):
                raise StorageError(f"{node}: {self._path} was not there when it was opened")
            while out.tell() < length:  # `out` keeps what a failed source sent: the next one goes on from there
                done = out.tell()
                piece = min(PIECE_BYTES, length - done)
                before = out.tell()
                self._store.peer(node).read_into(
                    {"path": self._path, "offset": offset + done, "length": piece, "size": self._size}, out, self._class
                )
                if out.tell() - before != piece:
                    raise PeerAway(f"{node} ended the stream early")

        self._try_each(fill, own_problem)
        return content

    def _read_local(self, offset: int, length: int) -> pa.Buffer:
        with self._lock:
            assert self._local is not None
            self._local.seek(offset)
            content = self._local.read_buffer(length)
        self._store.counter.add(self._class, self._store.node, self._store.node, content.size)
        if content.size != length:
            raise OSError(f"{self._path} was cut short while it was read")
        return content

    def _is_own(self, node: str) -> bool:
        return node == self._store.node and self._store.folder is not None

    def _try_each(self, act: Callable[[str], int | None], *problems_so_far: str) -> int:
        """The first result that a source gives. Raises StorageError with every source's own words when none does."""
        problems = [problem for problem in problems_so_far if problem]
        for node in self._store.ordered(self._sources):
            try:
                result = act(node)
            except StorageError as error:
                self._store.note(node, away=isinstance(error, PeerAway))
                problems.append(error.message if node in error.message else f"{node}: {error.message}")
            else:
                self._store.note(node, away=False)
                return result or 0
        if not problems:
            problems = ["no node is known to hold it"]
        raise StorageError(
            f"{self._path} cannot be read from any of its replicas: {'; '.join(problems)}",
            "`datalocal cluster status` shows which nodes are up",
        )
