"""What else runs on this machine while something is measured: a figure without it says nothing on a machine that others use."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

_KTHREADD = 2


@dataclass(slots=True)
class Others:
    """Cores that others had, on average: the other processes of this machine, and other machines on its host (steal)."""

    cores: float = 0.0
    ours: Callable[[psutil.Process], bool] = lambda _: False
    _mine: dict[tuple[int, float], bool] = field(default_factory=dict)
    _seen: dict[tuple[int, float], float] = field(default_factory=dict)

    def look(self, since: float) -> float:
        """Processor seconds that others had since the last look; of a process that is new and older than `since`, none."""
        spent = 0.0
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError), process.oneshot():
                key = (process.pid, process.create_time())
                if key not in self._mine:
                    kernel = _KTHREADD in (process.pid, process.ppid())
                    self._mine[key] = kernel or self.ours(process)
                if self._mine[key]:
                    continue
                times = process.cpu_times()
                now = times.user + times.system
                spent += now - self._seen.get(key, now if key[1] < since else 0.0)
                self._seen[key] = now
        return spent


def _stolen() -> float:
    told = psutil.cpu_times()
    return float(getattr(told, "steal", 0.0))


@contextlib.contextmanager
def watched(home: Path, every_seconds: float = 1.0) -> Iterator[Others]:
    """What others than this process, its children and those with the DATALOCAL_HOME `home` take until the block is left."""
    me = psutil.Process()

    def ours(process: psutil.Process) -> bool:
        if process.pid == me.pid or me in process.parents():
            return True
        return f"DATALOCAL_HOME={home}".encode() in Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")

    found, end, total = Others(ours=ours), threading.Event(), 0.0
    begin, stolen = time.time(), _stolen()
    found.look(begin)

    def follow() -> None:
        nonlocal total
        while not end.wait(every_seconds):
            total += found.look(begin)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield found
    finally:
        end.set()
        thread.join()
        total += found.look(begin)
        found.cores = (total + _stolen() - stolen) / max(time.time() - begin, 1e-9)


def wait_until_quiet(home: Path, cores: float, patience_seconds: float, for_seconds: float = 4.0) -> float:
    """Return when others have had no more than so many cores for a while, or patience is at an end; what they had last."""
    deadline = time.monotonic() + patience_seconds
    while True:
        with watched(home, for_seconds) as others:
            time.sleep(for_seconds)
        if others.cores <= cores or time.monotonic() > deadline:
            return others.cores
