"""The Flight server under every server of datalocal: the token, chunked streams, errors as text.

Data travel as record batches of one uint8 column (Arrow's buffers are handed to gRPC without a copy); questions and answers
are JSON.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.flight as flight

from datalocal.errors import ClusterError, DatalocalError, StorageError
from datalocal.spec.joining import Tls
from datalocal.storage.tls import scheme, server_arguments

CHUNK_BYTES = 1 << 20
"""Bytes per message: far below gRPC's limits, large enough that a message's overhead does not show."""

SCHEMA = pa.schema([("data", pa.uint8())])


def bearer(token: str) -> bytes:
    """The header's value. Raises ClusterError, without showing the token, when it cannot travel in one."""
    if not (token and token.isascii() and token.isprintable()) or token != token.strip():
        raise ClusterError("the cluster's token is empty, or has characters that a header cannot carry")
    return f"Bearer {token}".encode()


class _TokenCheck(flight.ServerMiddlewareFactory):  # type: ignore[misc]  # pyarrow ships no types
    """Refuses every call that does not carry the cluster's token."""

    def __init__(self, token: str) -> None:
        super().__init__()
        self._expected = bearer(token)

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

    def __init__(self, *, name: str, token: str, host: str, port: int, tls: Tls | None = None) -> None:
        self._name = name
        check, certificates = _TokenCheck(token), server_arguments(tls)
        _check_port(name, host, port)
        try:  # the server listens from here on; gRPC's own threads serve
            super().__init__(f"{scheme(tls)}://{host}:{port}", middleware={"token": check}, **certificates)
        except (pa.ArrowException, OSError) as error:
            raise _port_in_use(name, host, port, error) from None
        self.location = f"{scheme(tls)}://{host}:{self.port}"

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
        stopping.join(timeout=0.5)

    def _batches(self, schema: pa.Schema, chunks: Iterator[pa.Buffer]) -> Iterator[pa.RecordBatch]:
        with self._telling():
            for chunk in chunks:
                yield batch(chunk, schema)

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except (flight.FlightError, GeneratorExit):
            raise
        except Exception as error:  # whatever it is, the caller must hear of it and this server goes on
            raise _refused(error, self._name) from None


def batch(chunk: pa.Buffer, schema: pa.Schema = SCHEMA) -> pa.RecordBatch:
    return pa.record_batch([pa.Array.from_buffers(pa.uint8(), chunk.size, [None, chunk])], schema=schema)


def sliced(content: pa.Buffer) -> Iterator[pa.Buffer]:
    """`content` in chunks, without a copy."""
    for start in range(0, content.size, CHUNK_BYTES):
        yield content.slice(start, min(CHUNK_BYTES, content.size - start))


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
