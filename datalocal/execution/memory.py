"""A bound on the memory of a node's tasks: the largest task process is ended before the machine is.

The kernel's own bounds (a container's, a systemd unit's MemoryMax) are sharper where they are there; this one needs nobody's help.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time

import psutil

from datalocal.units import format_bytes

log = logging.getLogger("datalocal.node")

_LOOK_SECONDS = 0.5


class MemoryBound:
    """Looks at the children of this process, and ends the largest while they and it use more than `limit_bytes` together."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._ended: dict[int, str] = {}

    def start(self) -> None:
        """Look twice a second from now on, for as long as this process lives."""
        threading.Thread(target=self._watch, name="datalocal-memory", daemon=True).start()

    def reason(self, pid: int) -> str:
        """Why this process was ended by the bound; empty when it was not."""
        return self._ended.get(pid, "")

    def look(self) -> None:
        """Measure once, and end the largest child when that is too much."""
        own = psutil.Process()
        sizes = {child: _bytes(child) for child in own.children(recursive=True)}
        used = _bytes(own) + sum(sizes.values())
        if used <= self._limit_bytes or not sizes:
            return
        largest = max(sizes, key=sizes.__getitem__)
        told = (
            f"the node's tasks used {format_bytes(used)}, more than its memory_bytes of {format_bytes(self._limit_bytes)}; "
            f"this was the largest with {format_bytes(sizes[largest])}"
        )
        self._ended[largest.pid] = told
        with contextlib.suppress(psutil.Error):
            largest.kill()
        log.warning("process %d was ended: %s", largest.pid, told)

    def _watch(self) -> None:
        while True:
            time.sleep(_LOOK_SECONDS)
            with contextlib.suppress(psutil.Error):  # a child that ended meanwhile
                self.look()


def _bytes(process: psutil.Process) -> int:
    """Memory of a process; what it shares with others (forks of a warm torch) counts in parts, so that sums are right."""
    try:
        full = process.memory_full_info()
        return int(getattr(full, "pss", full.rss))
    except psutil.Error:
        return 0
