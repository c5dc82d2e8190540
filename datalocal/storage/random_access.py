"""The file protocol that `pa.PythonFile` asks for, over one question: bytes from here to there."""

from __future__ import annotations

import atexit
import io
import time
import weakref
from abc import ABC, abstractmethod
from typing import Any

import pyarrow as pa

_PATIENCE_SECONDS = 0.5
_held: list[weakref.ref[Any]] = []
"""Files and their bytes that somebody still has."""


def _hold(what: object) -> None:
    _held.append(weakref.ref(what, _held.remove))


@atexit.register
def _let_arrow_finish() -> None:
    """Wait until Arrow's threads have let go of what they read.

    They do so a moment after the reader has its bytes, and take the GIL for it; a process that is ending by then is aborted
    ("terminate called without an active exception", apache/arrow#34314).
    """
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while _held and time.monotonic() < deadline:
        time.sleep(0.001)


class RandomAccessFile(ABC):
    """A file open for reading. Arrow holds a lock around each seek and read, and takes buffers without a copy."""

    def __init__(self, size_bytes: int) -> None:
        self._size = size_bytes
        self._position = 0
        self.closed = False
        _hold(self)

    @abstractmethod
    def _read_at(self, offset: int, length: int) -> pa.Buffer:
        """Exactly `length` bytes, which lie within the file. Raises StorageError."""

    @abstractmethod
    def _let_go(self) -> None:
        """Close what is open for it."""

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def size(self) -> int:
        return self._size

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        self._position = max(0, base + offset)
        return self._position

    def read(self, length: int = -1) -> bytes:
        return bytes(self.read_buffer(length))

    def read_buffer(self, length: int = -1) -> pa.Buffer:
        """Up to `length` bytes from the current position; at the end of the file an empty buffer."""
        left = max(0, self._size - self._position)
        wanted = left if length is None or length < 0 else min(length, left)
        content = self._read_at(self._position, wanted) if wanted else pa.py_buffer(b"")
        self._position += content.size
        _hold(content)
        return content

    def flush(self) -> None:  # noqa: B027  # part of Arrow's protocol, and complete
        """Nothing to flush: the file is open for reading."""

    def close(self) -> None:
        self.closed = True
        self._let_go()
