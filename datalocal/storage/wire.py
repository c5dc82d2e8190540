"""What every Flight server and client of datalocal shares: the token, chunked streams, errors as text, deadlines.

Data travel as record batches of one uint8 column (Arrow's buffers are handed to gRPC without a copy); questions and answers
are JSON.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import socket
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import pyarrow as pa
import pyarrow.flight as flight

from datalocal.errors import ClusterError, DatalocalError, StorageError
from datalocal.ledger.records import TrafficClass
from datalocal.storage.counting import ByteCounter

CHUNK_BYTES = 1 << 20
"""Bytes per message: far below gRPC's limits, large enough that a message's overhead does not show."""

_UNKNOWN_BYTES = 500_000_000
"""What the deadline of a read allows for when only the peer knows the length."""

SCHEMA = pa.schema([("data", pa.uint8())])


class PeerAway(StorageError):
    """The peer did not answer, or went away while it did: another source may do better."""


def _bearer(token: str) -> bytes:
    """The header's value. Raises ClusterError, without showing the token, when it cannot travel in one."""
    if not (token and token.isascii() and token.isprintable()) or token != token.strip():
        raise ClusterError("the cluster's token is empty, or has characters that a header cannot carry")
    return f"Bearer {token}".encode()


# -- server side ---------------------------------------------------------------------------------------------------------


class _TokenCheck(flight.ServerMiddlewareFactory):  # type: ignore[misc]  # pyarrow ships no types
    """Refuses every call that does not carry the cluster's token."""

    def __init__(self, token: str) -> None:
        super().__init__()
        self._expected = _bearer(token)

    def start_call(self, info: Any, headers: dict[str, list[Any]]) -> None:
        given = (headers.get("authorization") or [""])[0]
        if not hmac.compare_digest(given.encode() if isinstance(given, str) else given, self._expected):
            raise flight.FlightUnauthenticatedError("the token is missing or wrong")


def _refused(error: Exception, where: str) -> flight.FlightServerError:
    """`error` as it travels to the client: message and hint as JSON beside gRPC's own text."""
    if isinstance(error, DatalocalError):
        message, hint = error.message, error.hint
    else:
        message, hint = f"{where}: {type(error).__name__}: {error}", ""
    return flight.FlightServerError(message, json.dumps({"message": message, "hint": hint}).encode())


class WireServer(flight.FlightServerBase):  # type: ignore[misc]  # pyarrow ships no types
    """A Flight server behind a token. Subclasses answer `ask`, `send` and `take`; what those raise reaches the caller as text."""

    def __init__(self, *, name: str, token: str, host: str, port: int) -> None:
        self._name = name
        check = _TokenCheck(token)
        _check_port(name, host, port)
        try:  # the server listens from here on; gRPC's own threads serve
            super().__init__(f"grpc://{host}:{port}", middleware={"token": check})
        except (pa.ArrowException, OSError) as error:
            raise _port_in_use(name, host, port, error) from None
        self.location = f"grpc://{host}:{self.port}"

    def ask(self, kind: str, body: dict[str, Any]) -> Any:
        """Answer a question: JSON in, JSON out."""
        raise StorageError(f"{self._name}: there is no question {kind!r}")

    def send(self, what: dict[str, Any]) -> tuple[int, Iterator[pa.Buffer]]:
        """The length in bytes of what is asked for, and its chunks."""
        raise StorageError(f"{self._name}: there is nothing to read here")

    def take(self, what: dict[str, Any], chunks: Iterator[pa.Buffer]) -> None:
        """Take `what["bytes"]` bytes in; `chunks` ends early when the sender dies."""
        raise StorageError(f"{self._name}: there is nothing to write here")

    def do_action(self, context: Any, action: Any) -> Iterator[Any]:
        """Flight's name for a question."""
        with self._telling():
            answer = self.ask(action.type, json.loads(action.body.to_pybytes()))
        yield flight.Result(pa.py_buffer(json.dumps(answer).encode()))

    def do_get(self, context: Any, ticket: Any) -> Any:
        """Flight's name for a read."""
        with self._telling():
            total, chunks = self.send(json.loads(ticket.ticket))
        schema = SCHEMA.with_metadata({"bytes": str(total)})
        return flight.GeneratorStream(schema, self._batches(schema, chunks))

    def do_put(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        """Flight's name for a write."""
        with self._telling():
            if reader.schema != SCHEMA:
                raise StorageError(f"{self._name}: not datalocal's stream format")
            self.take(
                json.loads(descriptor.command),
                (chunk.data.column(0).buffers()[1] for chunk in reader if len(chunk.data)),
            )
        writer.write(b"done")

    def close(self) -> None:
        """Stop listening and let go of the port, at once where no call is under way, within a second in any case.

        A call that still streams to a stalled client ends by its own deadline.
        """
        stopping = threading.Thread(target=self.shutdown, name="datalocal-flight-close", daemon=True)
        stopping.start()
        stopping.join(timeout=0.8)

    def _batches(self, schema: pa.Schema, chunks: Iterator[pa.Buffer]) -> Iterator[pa.RecordBatch]:
        with self._telling():
            for chunk in chunks:
                yield _batch(chunk, schema)

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except (flight.FlightError, GeneratorExit):
            raise
        except Exception as error:  # whatever it is, the caller must hear of it and this server goes on
            raise _refused(error, self._name) from None


def _batch(chunk: pa.Buffer, schema: pa.Schema = SCHEMA) -> pa.RecordBatch:
    return pa.record_batch([pa.Array.from_buffers(pa.uint8(), chunk.size, [None, chunk])], schema=schema)


def _check_port(name: str, host: str, port: int) -> None:
    """Fail before gRPC does: it would write to stderr, and its error does not say why."""
    if port:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                raise _port_in_use(name, host, port, error) from None


def _port_in_use(name: str, host: str, port: int, error: Exception) -> ClusterError:
    return ClusterError(
        f"{name}: cannot listen on {host} port {port}: {getattr(error, 'strerror', None) or error}",
        "another program uses the port: stop it, or leave the port out for a free one",
    )


# -- client side ---------------------------------------------------------------------------------------------------------


def sliced(content: pa.Buffer) -> Iterator[pa.Buffer]:
    """`content` in chunks, without a copy."""
    for start in range(0, content.size, CHUNK_BYTES):
        yield content.slice(start, min(CHUNK_BYTES, content.size - start))


class Peer:
    """One Flight server as its client `me` sees it. Thread-safe; connects when first used; counts what goes either way.

    Raises PeerAway when the peer does not answer within the deadline, StorageError when it refuses.
    """

    def __init__(
        self, *, name: str, location: str, token: str, me: str, counter: ByteCounter, timeout_seconds: float
    ) -> None:
        self.name, self.location = name, location
        self._me, self._counter, self._timeout_seconds = me, counter, timeout_seconds
        self._header = (b"authorization", _bearer(token))
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

    def write(self, what: dict[str, Any], chunks: Iterable[pa.Buffer], class_: TrafficClass) -> None:
        """Send `chunks`, `what["bytes"]` bytes in all; returns when the peer has stored them."""
        with self._telling():
            request = json.dumps(what).encode()
            self._counter.add("control", self._me, self.name, len(request), "measured.writer")
            descriptor = flight.FlightDescriptor.for_command(request)
            writer, answers = self._connection().do_put(descriptor, SCHEMA, self._options(what["bytes"]))
            try:
                for chunk in chunks:
                    writer.write_batch(_batch(chunk))
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
                self._client = flight.FlightClient(self.location, generic_options=options)
            return self._client

    def _options(self, size_bytes: int) -> Any:
        """A deadline for the whole call: the timeout, and time to move the data at 5 MB/s."""
        return flight.FlightCallOptions(timeout=self._timeout_seconds + size_bytes / 5e6, headers=[self._header])

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
