"""Counting bytes where they are read or written: by class, source and destination node."""

from __future__ import annotations

import threading
from collections import Counter

from datalocal.ledger.records import ByteOrigin, ByteRow, TrafficClass


class ByteCounter:
    """Sums traffic. Thread-safe; reading it does not reset it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sums: Counter[tuple[TrafficClass, str, str, ByteOrigin]] = Counter()

    def add(
        self,
        class_: TrafficClass,
        source: str,
        destination: str,
        bytes: int,  # noqa: A002  # the unit is the name, as in ByteRow
        origin: ByteOrigin = "measured.reader",
    ) -> None:
        """Count `bytes` that went from node `source` to node `destination` (the same node: a local read or write)."""
        if bytes:
            with self._lock:
                self._sums[(class_, source, destination, origin)] += bytes

    def rows(self) -> tuple[ByteRow, ...]:
        """What was counted so far: merged, sorted, no row of 0 bytes."""
        with self._lock:
            sums = sorted(self._sums.items())
        return tuple(
            ByteRow(class_=class_, source=source, destination=destination, bytes=total, origin=origin)
            for (class_, source, destination, origin), total in sums
        )
