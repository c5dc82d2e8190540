"""No process outlives the one that started it, however that one ends."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Have the kernel end this process when `parent` (its parent's pid, main thread) is gone; at once if it is already.

    Linux; elsewhere a thread looks once a second. Call it in the child itself: set by the parent it would be tied to the
    thread that spawned the child.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # it died before the call
            os._exit(1)
    else:
        when_parent_dies(parent, lambda: os._exit(1))


def when_parent_dies(parent: int, act: Callable[[], None], interval_seconds: float = 1.0) -> None:
    """Call `act` in a thread soon after this process has lost its parent `parent`."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(interval_seconds)
        act()

    threading.Thread(target=watch, name="datalocal-parent-watch", daemon=True).start()


def kill_descendants() -> None:
    """End everything that this process has started, and what those have started, at once."""
    import psutil

    children = psutil.Process().children(recursive=True)
    for child in children:
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(children, timeout=5)
