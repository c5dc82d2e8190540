"""Counting bytes where they are read or written: by class, source and destination node."""

from __future__ import annotations

import threading
from collections.abc import Iterable

from datalocal.ledger.records import ByteOrigin, ByteRow, TrafficClass


class ByteCounter:
    """Sums traffic. Thread-safe; reading it does not reset it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sums: dict[tuple[TrafficClass, str, str, ByteOrigin], list[int]] = {}
        """[bytes, traced bytes, operations, bytes on sockets]"""

    def add(
        self,
        class_: TrafficClass,
        source: str,
        destination: str,
        bytes: int,  # noqa: A002  # the unit is the name, as in ByteRow
        origin: ByteOrigin = "measured.reader",
        *,
        traced_bytes: int = 0,
        operations: int = 0,
        socket_bytes: int = 0,
    ) -> None:
        """Count `bytes` that went from node `source` to node `destination` (the same node: a local read or write).

        `traced_bytes` and `operations` are what DataNodes should have counted of it themselves, `socket_bytes` what the
        kernel did on the reader's sockets.
        """
        if bytes:
            with self._lock:
                sums = self._sums.setdefault((class_, source, destination, origin), [0, 0, 0, 0])
                for place, count in enumerate((bytes, traced_bytes, operations, socket_bytes)):
                    sums[place] += count

    def add_rows(self, rows: Iterable[ByteRow]) -> None:
        """Count what somebody else counted."""
        for row in rows:
            self.add(
                row.class_,
                row.source,
                row.destination,
                row.bytes,
                row.origin,
                traced_bytes=row.traced_bytes,
                operations=row.operations,
                socket_bytes=row.socket_bytes,
            )

    def rows(self) -> tuple[ByteRow, ...]:
        """What was counted so far: merged, sorted, no row of 0 bytes."""
        with self._lock:
            sums = sorted((key, tuple(counts)) for key, counts in self._sums.items())
        return tuple(
            ByteRow(
                class_=class_,
                source=source,
                destination=destination,
                origin=origin,
                bytes=total,
                traced_bytes=traced,
                operations=operations,
                socket_bytes=on_sockets,
            )
            for (class_, source, destination, origin), (total, traced, operations, on_sockets) in sums
        )
