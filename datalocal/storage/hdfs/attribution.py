"""Who really sent the bytes of a read: the DataNodes at the other ends of this process's sockets, by the kernel's counters."""

from __future__ import annotations

import contextlib
import threading
from collections import Counter
from collections.abc import Collection, Iterator, Mapping

from datalocal.storage.sockets import Endpoint, SocketBytes, tcp_sockets

_one_read = threading.Lock()
"""Of this process, at a time: otherwise two reads' bytes could not be told apart. Tasks have processes of their own."""


class Senders:
    """Bytes received during one read, by IP address of the DataNode."""

    def __init__(self) -> None:
        self.received: dict[str, int] = {}


@contextlib.contextmanager
def senders(port: int) -> Iterator[Senders]:
    """Watch this process's sockets to `port` (the DataNodes' data port) for the length of one read."""
    found = Senders()
    with _one_read:
        before = _received(port)
        try:
            yield found
        finally:
            total: Counter[str] = Counter()
            for ends, count in _received(port).items():
                total[ends[1][0]] += count - before.get(ends, 0)
            found.received = {address: count for address, count in total.items() if count > 0}


def _received(port: int) -> Mapping[tuple[Endpoint, Endpoint], int]:
    return {ends: count.received for ends, count in tcp_sockets().items() if ends[1][1] == port}


class Questions:
    """What this process's data client and the NameNodes said to each other, by the kernel's count. Each byte is told once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[tuple[Endpoint, Endpoint], SocketBytes] = {}

    def take(self, ports: Collection[int]) -> tuple[int, int]:
        """(sent, received) since it was last asked, on sockets to these ports."""
        with self._lock:
            now = {ends: count for ends, count in tcp_sockets().items() if ends[1][1] in ports}
            sent = received = 0
            for ends, count in now.items():
                old = self._known.get(ends, _NOTHING)
                if count.sent < old.sent or count.received < old.received:  # the same ports, another connection
                    old = _NOTHING
                sent += count.sent - old.sent
                received += count.received - old.received
            self._known = now
            return sent, received


_NOTHING = SocketBytes(sent=0, received=0)

questions = Questions()


def served_by(received: Mapping[str, int], whole_bytes: int) -> Mapping[str, int]:
    """Who sent one read of one block, of `received` by address while it was made.

    Where one DataNode sent all of it (`whole_bytes`, with checksums), what others sent is the end of earlier reads that came
    late: on a busy host the packet that closes a read may arrive when the next one is under way.
    """
    whole = {address: count for address, count in received.items() if count >= whole_bytes > 0}
    return whole if len(whole) == 1 else received


def divide(weights: Mapping[str, int], total: int) -> dict[str, int]:
    """`total` in proportion to `weights`, in whole numbers that sum to it; nothing where there are no weights."""
    whole = sum(weights.values())
    if not whole:
        return {}
    names = sorted(weights, key=lambda name: (-weights[name], name))
    parts = {name: total * weights[name] // whole for name in names}
    parts[names[0]] += total - sum(parts.values())
    return parts
