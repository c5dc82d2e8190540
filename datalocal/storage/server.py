"""The Flight server over one node's folder: byte ranges, writes, listings."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import pyarrow as pa

from datalocal.errors import StorageError
from datalocal.spec.job import Columns
from datalocal.spec.joining import Tls
from datalocal.storage.files import Folder, Limits
from datalocal.storage.listing import datasets, list_page
from datalocal.storage.wire import CHUNK_BYTES, WireServer, sliced

if TYPE_CHECKING:
    from datalocal.storage.hdfs.client import HdfsStore

OpenHdfs: TypeAlias = "Callable[[], HdfsStore]"
"""A store with a counter of its own for each call, so that what a call read can be told."""


class StoreServer:
    """Serves one node's folder to the other nodes, from when it is made until `close`.

    Only who knows the token is served. Raises ClusterError when the port is in use.
    """

    def __init__(
        self,
        *,
        node: str,
        root: Path,
        token: str,
        host: str = "127.0.0.1",
        port: int = 0,
        free_disk_floor_bytes: int = 0,
        disk_bytes: int | None = None,
        tls: Tls | None = None,
        hdfs: OpenHdfs | None = None,
    ) -> None:
        """`hdfs` makes this node's view of HDFS, where the cluster's data sets lie there."""
        folder = Folder(node, root)
        folder.prepare(Limits(free_disk_floor_bytes=free_disk_floor_bytes, disk_bytes=disk_bytes))
        self._server = _Server(folder, hdfs, token=token, host=host, port=port, tls=tls)
        self.location: str = self._server.location

    def close(self) -> None:
        """Stop serving; takes less than a second."""
        self._server.close()


class _Server(WireServer):
    def __init__(
        self, folder: Folder, hdfs: OpenHdfs | None, *, token: str, host: str, port: int, tls: Tls | None
    ) -> None:
        self._folder, self._hdfs = folder, hdfs  # before super(): calls may arrive while it returns
        super().__init__(name=folder.node, token=token, host=host, port=port, tls=tls)

    def ask(self, kind: str, body: dict[str, Any]) -> Any:
        if kind == "stat":
            with self._folder.open(body["path"]) as file:
                return {"bytes": file.size()}
        if kind == "room":  # asked before a write, so that a full disk costs no traffic
            self._folder.resolve(body["path"])
            self._folder.check_space(body["path"], body["bytes"])
            return {}
        if kind == "list":
            columns = Columns(image=body["image"], label=body["label"])
            return list_page(self._folder, body["dataset"], columns, body["after"])
        if kind == "datasets":
            return datasets(self._folder)
        if kind == "delete":
            self._folder.delete(body["dataset"])
            return {}
        if kind == "inspect":
            return self._in_hdfs().inspect(body)
        return super().ask(kind, body)

    def send(self, what: dict[str, Any]) -> tuple[int, Iterator[pa.Buffer]]:
        if "hdfs" in what:
            content = self._in_hdfs().read_full(what["hdfs"], int(what["offset"]), int(what["length"]))
            return content.size, sliced(content)
        path, offset, length = what["path"], int(what["offset"]), int(what["length"])
        file = self._folder.open(path)
        if file.size() != what["size"]:
            found = file.size()
            file.close()
            raise StorageError(
                f"{self._name}: {path} has {found} bytes here, the reader began with a file of {what['size']}"
            )
        if offset < 0 or length < 0 or offset + length > what["size"]:
            file.close()
            raise StorageError(f"{self._name}: {path} has no bytes {offset} to {offset + length}")
        return length, self._chunks(path, file, offset, length)

    def take(self, what: dict[str, Any], chunks: Iterator[pa.Buffer]) -> None:
        if "hdfs" in what:
            self._take_for_hdfs(what, chunks)
            return
        with self._folder.create(what["path"], int(what["bytes"])) as file:
            for chunk in chunks:
                file.write(chunk)

    def _take_for_hdfs(self, what: dict[str, Any], chunks: Iterator[pa.Buffer]) -> None:
        """Keep the file until all of it is here, then write it from this node: HDFS's first replica is the one beside it."""
        with tempfile.TemporaryFile(dir=self._folder.scratch()) as file:
            for chunk in chunks:
                file.write(chunk)
            if file.tell() != what["bytes"]:
                raise StorageError(f"{self._name}: {what['path']}: {file.tell()} of {what['bytes']} bytes arrived")
            file.flush()
            here = [self._name, *("" for _ in range(int(what["hdfs"]) - 1))]
            self._in_hdfs().write(what["path"], Path(f"/proc/self/fd/{file.fileno()}"), here)

    def _in_hdfs(self) -> HdfsStore:
        if self._hdfs is None:
            raise StorageError(f"{self._name}: this cluster's data sets do not lie in HDFS")
        return self._hdfs()

    def _chunks(self, path: str, file: pa.NativeFile, offset: int, length: int) -> Iterator[pa.Buffer]:
        with file:
            file.seek(offset)
            while length > 0:
                chunk = file.read_buffer(min(CHUNK_BYTES, length))
                if not chunk.size:
                    raise StorageError(f"{self._name}: {path} was cut short while it was read")
                length -= chunk.size
                yield chunk
