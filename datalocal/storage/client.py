"""A task's view of all stores: read from anywhere, write to any node, list what lies where; every byte counted."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

import pyarrow as pa
from pyarrow import fs

from datalocal.errors import StorageError
from datalocal.ledger.records import TrafficClass
from datalocal.spec.job import Columns
from datalocal.spec.joining import Tls
from datalocal.storage.counting import ByteCounter
from datalocal.storage.files import Folder, check_path, is_unnamed
from datalocal.storage.filesystem import ShardFileSystem
from datalocal.storage.listing import Listing, datasets, list_all, shard_from_json
from datalocal.storage.peer import Peer
from datalocal.storage.reading import ReplicaFile
from datalocal.storage.wire import CHUNK_BYTES, sliced

Names: TypeAlias = list[str]  # inside the class, `list` is the method


class Store:
    """Reads and writes for node `node`: its own folder directly, the others' over Flight. Thread-safe, cheap to make.

    `root` is the node's own folder (None for the run process, which has none), `stores` the Flight location of each node.
    Paths are `data set/key`. Raises StorageError; a peer that does not answer costs `timeout_seconds` once, later it is tried last.
    """

    def __init__(
        self,
        *,
        node: str,
        root: Path | None,
        stores: Mapping[str, str],
        token: str,
        counter: ByteCounter,
        timeout_seconds: float = 10.0,
        tls: Tls | None = None,
    ) -> None:
        self.node, self.counter = node, counter
        self.folder = Folder(node, root) if root is not None else None
        self._lock = threading.Lock()
        self._away: set[str] = set()
        self._peers = {
            name: Peer(
                name=name,
                location=at,
                token=token,
                me=node,
                counter=counter,
                timeout_seconds=timeout_seconds,
                tls=tls,
            )
            for name, at in stores.items()
        }

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self, path: str, sources: Sequence[str], class_: TrafficClass = "input") -> pa.NativeFile:
        """The file, for random access: the own replica where `sources` names this node, else the first source that answers.

        When a source dies in the middle, the next one goes on at the same byte. Raises StorageError naming every source's problem.
        """
        return pa.PythonFile(ReplicaFile(self, path, sources, class_), mode="r")

    def filesystem(self, sources: Mapping[str, Sequence[str]], class_: TrafficClass = "input") -> fs.FileSystem:
        """The files of `sources` (path -> nodes) as a file system for `pyarrow.parquet` and `pyarrow.dataset`; reading only."""
        return fs.PyFileSystem(ShardFileSystem(sources, lambda path, nodes: self.open(path, nodes, class_)))

    def write(
        self, path: str, content: Path | pa.Buffer, nodes: Sequence[str], class_: TrafficClass = "output"
    ) -> None:
        """Write a file to each of `nodes` in turn, whole or not at all; an existing one is replaced.

        Stops at the first node that fails. Raises StorageError naming the node; for want of space, needed and free bytes.
        """
        check_path(path, self.node)
        size_bytes = content_bytes(content)
        for node in nodes:
            if self.folder is not None and node == self.node:
                self._write_own(self.folder, path, content, size_bytes)
                self.counter.add(class_, node, node, size_bytes, "measured.writer")
            else:
                what = {"path": path, "bytes": size_bytes}
                self.peer(node).ask("room", what)
                self.peer(node).write(what, content_chunks(content), class_)

    def write_copies(
        self, path: str, content: Path | pa.Buffer, nodes: Sequence[str], copies: int, class_: TrafficClass
    ) -> None:
        """Write a file to `copies` of `nodes`, to the first that take it; to fewer where fewer do.

        Raises StorageError with every node's own words when none does.
        """
        problems: list[str] = []
        written = 0
        for node in nodes:
            try:
                self.write(path, content, [node], class_)
                written += 1
            except StorageError as error:
                problems.append(error.message)
            if written == copies:
                return
        if not written:
            raise StorageError(f"{path} could not be written to any node: {'; '.join(problems)}")

    def _write_own(self, folder: Folder, path: str, content: Path | pa.Buffer, size_bytes: int) -> None:
        if isinstance(content, Path) and is_unnamed(content) and folder.adopt(path, content, size_bytes):
            return
        with folder.create(path, size_bytes) as file:
            for chunk in content_chunks(content):
                file.write(chunk)

    def list(self, node: str, dataset: str, columns: Columns) -> Listing:
        """The shards of `dataset` on `node`; their footers and labels are read by that node, only the answer travels."""
        check_path(dataset, self.node)
        if self.folder is not None and node == self.node:
            return list_all(self.folder, dataset, columns)
        shards = []
        more, after = True, ""
        while more:
            question = {"dataset": dataset, "image": columns.image, "label": columns.label, "after": after}
            page = self.peer(node).ask("list", question)
            shards += [shard_from_json(shard) for shard in page["shards"]]
            more, after = page["more"], shards[-1].key if shards else ""
        return Listing(node=node, dataset=dataset, shards=tuple(shards))

    def keeps(self, nodes: Sequence[str]) -> bool:
        """Whether what is written to `nodes` stays in this node's own folder: an unnamed file on its disk is named, not copied."""
        return self.folder is not None and self.node in nodes

    def remarks(self, dataset: str, columns: Columns) -> Names:
        """What is to be known about where `dataset` lies, beside its listings."""
        return []

    def places(self, nodes: Sequence[str]) -> Names:
        """Where what is written to `nodes` can be listed and deleted: a folder each."""
        return list(nodes)

    def datasets(self, node: str) -> Names:
        """Every folder on `node` that holds shards directly, sorted."""
        if self.folder is not None and node == self.node:
            return datasets(self.folder)
        return [str(name) for name in self.peer(node).ask("datasets", {})]

    def delete(self, node: str, dataset: str) -> None:
        """Remove `dataset` from `node`; what is not there is no error."""
        check_path(dataset, self.node)
        if self.folder is not None and node == self.node:
            self.folder.delete(dataset)
        else:
            self.peer(node).ask("delete", {"dataset": dataset})

    def close(self) -> None:
        """Let go of all connections; open files of this store cannot be read any more over the wire."""
        for peer in self._peers.values():
            peer.close()

    # -- for the files that this store opens -----------------------------------------------------------------------------

    def peer(self, node: str) -> Peer:
        """The store of `node`. Raises StorageError when the cluster has none of that name."""
        try:
            return self._peers[node]
        except KeyError:
            known = ", ".join(sorted(self._peers)) or "none"
            raise StorageError(f"{node}: no store of this name is known (known: {known})") from None

    def ordered(self, sources: Iterable[str]) -> Names:
        """`sources` in the order to try them: the own node, then those that answer, then those that did not."""
        with self._lock:
            away = set(self._away)
        return sorted(dict.fromkeys(sources), key=lambda node: (node in away, node != self.node))

    def note(self, node: str, *, away: bool) -> None:
        """Remember whether `node` answered."""
        with self._lock:
            (self._away.add if away else self._away.discard)(node)


def content_bytes(content: Path | pa.Buffer) -> int:
    """Size of what is to be written. Raises StorageError when the file is not there."""
    if isinstance(content, pa.Buffer):
        return int(content.size)
    try:
        return content.stat().st_size
    except OSError as error:
        raise StorageError(f"{content} cannot be read: {error.strerror or error}") from None


def content_chunks(content: Path | pa.Buffer) -> Iterator[pa.Buffer]:
    """What is to be written, in pieces; a file is read as they are taken."""
    if isinstance(content, pa.Buffer):
        yield from sliced(content)
        return
    try:
        with pa.OSFile(str(content), "rb") as file:
            while (chunk := file.read_buffer(CHUNK_BYTES)).size:
                yield chunk
    except OSError as error:
        raise StorageError(f"{content} cannot be read: {error.strerror or error}") from None
