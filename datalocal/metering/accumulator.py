"""The meters of one host, watched for as long as the process lives."""

from __future__ import annotations

import secrets
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from datalocal.metering.counter import Counter
from datalocal.metering.nvml import SAMPLE_SECONDS, Gpu, Nvml
from datalocal.metering.rapl import POWERCAP, Zone, find_zones, is_virtual

LONGEST_POLL_SECONDS = 60.0


class MeterAccumulator:
    """Reads counters often enough that none can wrap unseen; `read` tells what has come together since the beginning.

    Two readings are comparable when they name the same `meter`. Nothing here raises because of a meter.
    """

    def __init__(
        self,
        *,
        powercap_root: Path = POWERCAP,
        allow_virtual: bool = False,
        virtual: bool | None = None,
        nvml: Nvml | None = None,
        clock: Callable[[], float] = time.monotonic,
        watch: bool = True,
    ) -> None:
        """`allow_virtual`: believe RAPL inside a virtual machine; `watch`: poll in a daemon thread (else call `poll`)."""
        self.meter = secrets.token_hex(8)
        self._clock = clock
        self._lock = threading.Lock()
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        inside = is_virtual() if virtual is None else virtual
        self._zones, self._no_zones = find_zones(powercap_root, virtual=inside and not allow_virtual)
        self._nvml = nvml if nvml is not None else Nvml.open()
        self.poll()
        if watch and (self._zones or self._nvml.gpus):
            self._thread = threading.Thread(target=self._watch, name="meters", daemon=True)
            self._thread.start()

    @property
    def poll_seconds(self) -> float:
        """How long a counter may go unread: a quarter of its fastest round, at most a minute."""
        if self._nvml.samples_power:
            return SAMPLE_SECONDS
        rounds = [zone.counter.range / zone.counter.limit_per_second for zone in self._zones if zone.counter.range]
        return max(1.0, min([LONGEST_POLL_SECONDS, *(seconds / 4 for seconds in rounds)]))

    def poll(self) -> None:
        """Look at every counter now."""
        with self._lock:
            self._look()

    def read(self) -> dict[str, Any]:
        """A reading as JSON values.

        {host, meter, time, monotonic, cpu_busy_seconds, cpu_total_seconds, rapl: [{zone, ...}], gpus: [{uuid, ...}]} with
        {joules, reason, origin, gaps, covered_seconds, counter_joules, range_joules, limit_watts} per meter: joules since
        this accumulator began, None with a reason where there are none. CPU seconds are core-seconds of the whole host since
        boot.
        """
        with self._lock:
            monotonic = self._look()
            busy, total = _cpu_seconds()
            return {
                "host": socket.gethostname(),
                "meter": self.meter,
                "time": time.time(),
                "monotonic": monotonic,
                "cpu_busy_seconds": busy,
                "cpu_total_seconds": total,
                "rapl": self._rapl(),
                "gpus": self._gpus(),
            }

    def close(self) -> None:
        """Stop watching and let go of NVML."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join(timeout=10)
        with self._lock:
            self._nvml.close()

    def _look(self) -> float:
        now = self._clock()
        for zone in self._zones:
            zone.look(now)
        self._nvml.look(now)
        return now

    def _rapl(self) -> list[dict[str, Any]]:
        if not self._zones:
            return [{"zone": "cpu", "joules": None, "reason": self._no_zones, "gaps": 0}]
        return [_entry("zone", zone.name, zone) for zone in self._zones]

    def _gpus(self) -> list[dict[str, Any]]:
        found = [_entry("uuid", gpu.uuid, gpu) for gpu in self._nvml.gpus]
        if self._nvml.problem:
            found.append({"uuid": "", "joules": None, "reason": self._nvml.problem, "gaps": 0})
        return found

    def _watch(self) -> None:
        while not self._closed.wait(self.poll_seconds):
            self.poll()


def _entry(key: str, name: str, meter: Zone | Gpu) -> dict[str, Any]:
    counter = meter.counter
    range_, limit = (counter.range, counter.limit_per_second) if isinstance(counter, Counter) else (None, None)
    per_joule = 1e6 if isinstance(meter, Zone) else 1e3
    return {
        key: name,
        "joules": meter.joules,
        "reason": meter.problem or counter.why,
        "origin": meter.origin,
        "gaps": counter.gaps,
        "covered_seconds": counter.covered_seconds,
        "counter_joules": meter.counter_joules,
        "range_joules": range_ / per_joule if range_ else None,
        "limit_watts": limit / per_joule if limit else None,
    }


def read_meters(powercap_root: Path = POWERCAP) -> dict[str, Any]:
    """One reading of this host, to see what there is; for differences keep a `MeterAccumulator`."""
    meters = MeterAccumulator(powercap_root=powercap_root, watch=False)
    try:
        return meters.read()
    finally:
        meters.close()


def _cpu_seconds() -> tuple[float, float]:
    """Busy and all core-seconds of the host. Guests are part of `user` already; waiting for a disk is not being busy."""
    times = psutil.cpu_times()
    parts = ("user", "nice", "system", "irq", "softirq", "steal")
    busy = sum(getattr(times, part, 0.0) for part in parts)
    return busy, busy + times.idle + getattr(times, "iowait", 0.0)
