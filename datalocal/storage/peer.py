"""A Flight server as its clients see it: questions, reads and writes with a deadline, every byte counted, errors in words."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.flight as flight

from datalocal.errors import StorageError
from datalocal.ledger.records import TrafficClass
from datalocal.spec.joining import Tls
from datalocal.storage.counting import ByteCounter
from datalocal.storage.tls import client_arguments
from datalocal.storage.wire import SCHEMA, batch, bearer

_UNKNOWN_BYTES = 500_000_000
"""What the deadline of a read allows for when only the peer knows the length."""


class PeerAway(StorageError):
    """The peer did not answer, or went away while it did: another source may do better."""


class Peer:
    """One Flight server as its client `me` sees it. Thread-safe; connects when first used; counts what goes either way.

    Raises PeerAway when the peer does not answer within the deadline, StorageError when it refuses.
    """

    def __init__(
        self,
        *,
        name: str,
        location: str,
        token: str,
        me: str,
        counter: ByteCounter,
        timeout_seconds: float,
        tls: Tls | None = None,
    ) -> None:
        self.name, self.location = name, location
        self._me, self._counter, self._timeout_seconds = me, counter, timeout_seconds
        self._tls = tls
        self._header = (b"authorization", bearer(token))
        self._lock = threading.Lock()
        self._client: Any = None
        self._closed = False

    def ask(self, kind: str, body: dict[str, Any]) -> Any:
        """Ask a question; counts both ways as `control`."""
        with self._telling():
            request = json.dumps(body).encode()
            self._counter.add("control", self._me, self.name, len(request), "measured.writer")
            results = list(self._connection().do_action(flight.Action(kind, request), self._options(0)))
            self._counter.add("control", self.name, self._me, sum(result.body.size for result in results))
        return json.loads(results[0].body.to_pybytes())

    def read_into(self, what: dict[str, Any], out: pa.FixedSizeBufferWriter, class_: TrafficClass) -> None:
        """Read what fills `out`; what arrived before a failure stays in `out` and is counted."""
        with self._reading(what, what["length"]) as reader:
            self._drain(reader, out, class_)

    def read(self, what: dict[str, Any], class_: TrafficClass) -> pa.Buffer:
        """Read something whose length the peer tells."""
        with self._reading(what, _UNKNOWN_BYTES) as reader:
            content = pa.allocate_buffer(int(reader.schema.metadata[b"bytes"]))
            self._drain(reader, pa.FixedSizeBufferWriter(content), class_)
            return content

    def write(
        self, what: dict[str, Any], chunks: Iterable[pa.Buffer], class_: TrafficClass, *, patience_seconds: float = 0.0
    ) -> None:
        """Send `chunks`, `what["bytes"]` bytes in all; returns when the peer has stored them.

        `patience_seconds`: what the peer may need to store them, beside the time to move them.
        """
        with self._telling():
            request = json.dumps(what).encode()
            self._counter.add("control", self._me, self.name, len(request), "measured.writer")
            descriptor = flight.FlightDescriptor.for_command(request)
            writer, answers = self._connection().do_put(
                descriptor, SCHEMA, self._options(what["bytes"], patience_seconds)
            )
            try:
                for chunk in chunks:
                    writer.write_batch(batch(chunk))
                    self._counter.add(class_, self._me, self.name, chunk.size, "measured.writer")
                writer.done_writing()
                stored = answers.read() is not None
            except BaseException:
                with contextlib.suppress(pa.ArrowException, OSError):  # says once more what is already on its way up
                    writer.close()
                raise
            writer.close()
            if not stored:
                raise PeerAway(f"{self.name} ended the write without a word")

    def close(self) -> None:
        """Let go of the connection."""
        with self._lock:
            client, self._client, self._closed = self._client, None, True
        if client is not None:
            client.close()

    def _drain(self, reader: Any, out: pa.FixedSizeBufferWriter, class_: TrafficClass) -> None:
        for chunk in reader:
            data = chunk.data.column(0).buffers()[1]
            out.write(data)
            self._counter.add(class_, self.name, self._me, data.size)

    @contextlib.contextmanager
    def _reading(self, what: dict[str, Any], expected_bytes: int) -> Iterator[Any]:
        with self._telling():
            request = json.dumps(what).encode()
            self._counter.add("control", self._me, self.name, len(request), "measured.writer")
            reader = self._connection().do_get(flight.Ticket(request), self._options(expected_bytes))
            try:
                yield reader
            except BaseException:
                reader.cancel()  # or the server would stream on into the void
                raise

    def _connection(self) -> Any:
        with self._lock:
            if self._closed:
                raise StorageError(f"the connection to {self.name} is closed")
            if self._client is None:
                # A proxy from the environment must not see loopback traffic, nor the token.
                options = [("grpc.enable_http_proxy", 0)]
                self._client = flight.FlightClient(
                    self.location, generic_options=options, **client_arguments(self._tls)
                )
            return self._client

    def _options(self, size_bytes: int, patience_seconds: float = 0.0) -> Any:
        """A deadline for the whole call: the timeout, time to move the data at 5 MB/s, and what the peer may need itself."""
        seconds = self._timeout_seconds + size_bytes / 5e6 + patience_seconds
        return flight.FlightCallOptions(timeout=seconds, headers=[self._header])

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except flight.FlightUnauthenticatedError:
            raise StorageError(
                f"{self.name} at {self.location} refused the token",
                "the token belongs to another start of the cluster: use the cluster's current state",
            ) from None
        except flight.FlightServerError as error:
            raise _from_peer(error, self.name) from None
        except flight.FlightTimedOutError:
            raise PeerAway(f"{self.name} at {self.location} did not answer in time") from None
        except (pa.ArrowException, OSError) as error:
            raise PeerAway(f"{self.name} at {self.location} does not answer: {_reason(error)}") from None


def _from_peer(error: Any, name: str) -> StorageError:
    try:
        told = json.loads(error.extra_info)
        return StorageError(str(told["message"]), str(told["hint"]))
    except (ValueError, KeyError, TypeError):
        return PeerAway(f"{name}: {_reason(error)}")


def _reason(error: Exception) -> str:
    """What matters in gRPC's errors: the end of a chain of causes, without the debug context."""
    text = str(error).partition(". gRPC client debug context")[0].partition("\n")[0]
    return text.rpartition("Failed to connect to remote host: ")[2] or text
