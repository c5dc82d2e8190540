"""Start our own long-lived processes: one JSON line in on stdin, one JSON line out when ready, no polling."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from datalocal.errors import ClusterError


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """A process that cannot be mistaken for a later one with the same number."""

    pid: int
    created: float

    @classmethod
    def of(cls, pid: int) -> Identity | None:
        """The process `pid` as it is now; None when there is none."""
        try:
            process = psutil.Process(pid)
            return None if process.status() == psutil.STATUS_ZOMBIE else cls(pid=pid, created=process.create_time())
        except psutil.Error:
            return None

    @property
    def alive(self) -> bool:
        now = Identity.of(self.pid)
        return now is not None and abs(now.created - self.created) < 0.05


class Starting:
    """A process that was started and has not said yet that it is ready."""

    def __init__(
        self,
        module: str,
        name: str,
        log: Path,
        *,
        message: Mapping[str, Any],
        hold: bool,
        within: Sequence[str] = (),
    ) -> None:
        """Start `python -m module`. `message` (it may hold the token) goes in by stdin, never by argv or environment.

        `within` is a command that runs the one that follows it, and becomes it. `hold` keeps stdin open for as long as this
        process lives: the child ends when it closes.
        """
        self.name, self.log = name, log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [*within, sys.executable, "-m", module],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                start_new_session=True,  # a Ctrl-C in the terminal is for the command, not for the cluster
                env=node_environment(),
            )
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died at once: ready() tells with its log
            self.process.stdin.write(json.dumps({**message, "hold": hold}).encode() + b"\n")
            self.process.stdin.flush()
            if not hold:
                self.process.stdin.close()

    def ready(self, timeout_seconds: float = 60) -> dict[str, Any]:
        """The line with which it says that it is ready. Raises ClusterError with the end of its log."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + timeout_seconds
        buffer = b""
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while b"\n" not in buffer:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise ClusterError(
                        f"{self.name} did not start within {timeout_seconds:.0f} s", f"see its log {self.log}"
                    )
                chunk = os.read(self.process.stdout.fileno(), 65536)
                if not chunk:
                    raise ClusterError(f"{self.name} did not start: {_last_line(self.log)}", f"see its log {self.log}")
                buffer += chunk
        content: dict[str, Any] = json.loads(buffer.split(b"\n", 1)[0])
        if "error" in content:
            raise ClusterError(content["error"], content.get("hint", ""))
        return content

    @property
    def identity(self) -> Identity:
        found = Identity.of(self.process.pid)
        if found is None:
            raise ClusterError(f"{self.name} ended: {_last_line(self.log)}", f"see its log {self.log}")
        return found


def read_message() -> dict[str, Any]:
    """In the child: the message from stdin."""
    content: dict[str, Any] = json.loads(sys.stdin.buffer.readline())
    return content


def say_ready(content: Mapping[str, Any]) -> None:
    """In the child: one line on stdout, which is then closed."""
    sys.stdout.write(json.dumps(content) + "\n")
    sys.stdout.flush()
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)


def stop(processes: Sequence[Identity], *, grace_seconds: float = 5) -> None:
    """SIGTERM, then SIGKILL after the grace; the children of what is killed end by themselves."""
    alive = [psutil.Process(identity.pid) for identity in processes if identity.alive]
    for sig in (signal.SIGTERM, signal.SIGKILL):
        for process in alive:
            with contextlib.suppress(psutil.Error):
                process.send_signal(sig)
        _, alive = psutil.wait_procs(alive, timeout=grace_seconds)


def node_environment() -> dict[str, str]:
    """What a node's process starts with: one thread per library, and memory that is used again instead of handed back.

    A node's cores are used by datalocal's own pools, not twice. Row groups and batches come and go by the megabyte; with the
    allocators' defaults every one is given back to the system, and each of its pages cleared and faulted in for the next.
    """
    memory = {
        "MALLOC_ARENA_MAX": "2",  # decode threads otherwise keep an arena each, and memory seems to leak
        "MALLOC_MMAP_THRESHOLD_": str(64 << 20),
        "MALLOC_TRIM_THRESHOLD_": str(256 << 20),
        "ARROW_DEFAULT_MEMORY_POOL": "system",
    }
    return {**memory, **os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def _last_line(log: Path) -> str:
    try:
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    except OSError:
        return "no log"
    return lines[-1] if lines else "it said nothing"
