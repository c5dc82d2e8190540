"""The run process's Flight server: nodes bring it logs, records and checkpoints, and fetch code and checkpoints from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from datalocal.errors import StorageError
from datalocal.spec.joining import Tls
from datalocal.storage.counting import ByteCounter
from datalocal.storage.peer import Peer
from datalocal.storage.wire import WireServer, sliced

HEAD = "head"
"""Name of the run process in byte rows."""


class SinkHandler(Protocol):
    """What becomes of what nodes bring. Called from the server's threads, several at a time."""

    def log(self, arm: str, task: str, text: str) -> None:
        """Keep a piece of a task's log."""

    def record(self, kind: str, content: dict[str, Any]) -> None:
        """Keep a record (JSON values). The caller waits: the order of arrival is the order of events."""

    def put_checkpoint(self, arm: str, name: str, content: pa.Buffer) -> None:
        """Keep a checkpoint."""

    def get_checkpoint(self, arm: str, name: str) -> pa.Buffer:
        """A checkpoint that was kept."""


class Sink:
    """Serves the run process, from when it is made until `close`. `code` is the packed code by hash.

    Raises ClusterError when the port is in use.
    """

    def __init__(
        self,
        *,
        token: str,
        code: Mapping[str, bytes | Path],
        handler: SinkHandler,
        host: str = "127.0.0.1",
        port: int = 0,
        tls: Tls | None = None,
    ) -> None:
        self._server = _Server(dict(code), handler, token=token, host=host, port=port, tls=tls)
        self.location: str = self._server.location

    def close(self) -> None:
        """Stop serving; takes less than a second."""
        self._server.close()


class _Server(WireServer):
    def __init__(
        self,
        code: dict[str, bytes | Path],
        handler: SinkHandler,
        *,
        token: str,
        host: str,
        port: int,
        tls: Tls | None,
    ) -> None:
        self._code, self._handler = code, handler  # before super(): calls may arrive while it returns
        super().__init__(name=HEAD, token=token, host=host, port=port, tls=tls)

    def ask(self, kind: str, body: dict[str, Any]) -> Any:
        if kind == "log":
            self._handler.log(body["arm"], body["task"], body["text"])
        elif kind == "record":
            self._handler.record(body["kind"], body["content"])
        else:
            return super().ask(kind, body)
        return {}

    def send(self, what: dict[str, Any]) -> tuple[int, Iterator[pa.Buffer]]:
        content = (
            self._handler.get_checkpoint(what["arm"], what["name"]) if "name" in what else self._packed(what["code"])
        )
        return content.size, sliced(content)

    def take(self, what: dict[str, Any], chunks: Iterator[pa.Buffer]) -> None:
        content = pa.allocate_buffer(int(what["bytes"]))
        out = pa.FixedSizeBufferWriter(content)
        for chunk in chunks:
            out.write(chunk)
        if out.tell() != content.size:
            raise StorageError(
                f"checkpoint {what['name']}: {out.tell()} of {content.size} bytes arrived, nothing was kept"
            )
        self._handler.put_checkpoint(what["arm"], what["name"], content)

    def _packed(self, hash_: str) -> pa.Buffer:
        try:
            packed = self._code[hash_]
        except KeyError:
            raise StorageError(f"the run has no code {hash_!r}") from None
        return pa.py_buffer(packed.read_bytes() if isinstance(packed, Path) else packed)


class SinkClient:
    """A node's line to the run process. Synchronous: when a call returns, the run process has it. Thread-safe.

    Raises StorageError when the run process does not answer, or says no.
    """

    def __init__(
        self,
        *,
        location: str,
        token: str,
        node: str,
        counter: ByteCounter,
        timeout_seconds: float = 30.0,
        tls: Tls | None = None,
    ) -> None:
        self._peer = Peer(
            name=HEAD,
            location=location,
            token=token,
            me=node,
            counter=counter,
            timeout_seconds=timeout_seconds,
            tls=tls,
        )

    def __enter__(self) -> SinkClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def log(self, arm: str, task: str, text: str) -> None:
        """Append `text` to the task's log."""
        self._peer.ask("log", {"arm": arm, "task": task, "text": text})

    def record(self, kind: str, content: dict[str, Any]) -> None:
        """Bring a record (JSON values)."""
        self._peer.ask("record", {"kind": kind, "content": content})

    def put_checkpoint(self, arm: str, name: str, content: pa.Buffer) -> None:
        """Bring a checkpoint, streamed in chunks."""
        self._peer.write({"arm": arm, "name": name, "bytes": content.size}, sliced(content), "checkpoint")

    def get_checkpoint(self, arm: str, name: str) -> pa.Buffer:
        """Fetch a checkpoint."""
        return self._peer.read({"arm": arm, "name": name}, "checkpoint")

    def get_code(self, hash_: str) -> bytes:
        """Fetch the job's packed code."""
        content: bytes = self._peer.read({"code": hash_}, "control").to_pybytes()
        return content

    def close(self) -> None:
        """Let go of the connection."""
        self._peer.close()
