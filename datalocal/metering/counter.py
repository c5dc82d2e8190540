"""Joules from counters that wrap and reset, and from samples of power. Pure: the caller brings value and time.

A gap is a time of which nothing is known: it adds nothing, it is counted, and it makes the total a lower bound.
"""

from __future__ import annotations

from dataclasses import dataclass

SLACK_SECONDS = 1.0
"""Counters are updated up to about 100 ms late, so that a short interval may hold the energy of a longer one."""


@dataclass(slots=True, kw_only=True)
class Counter:
    """Adds up what a counter says, in its own unit, and counts the intervals that it cannot account for."""

    limit_per_second: float
    """No device draws more: a larger step is a reset (or the recovery from one), not energy."""
    range: float | None = None
    """The counter runs from 0 to `range` and begins anew; None: it never does, or nobody says where."""
    total: float = 0.0
    gaps: int = 0
    why: str = ""
    """What the last gap was."""
    covered_seconds: float = 0.0
    """The time that `total` accounts for."""
    _last: tuple[float, float] | None = None

    @property
    def value(self) -> float | None:
        """The last reading itself; None before the first."""
        return self._last[0] if self._last else None

    def update(self, value: float, at_seconds: float) -> None:
        """The counter reads `value` at monotonic time `at_seconds`."""
        last, self._last = self._last, (value, at_seconds)
        if last is None:
            return
        step, elapsed = value - last[0], at_seconds - last[1]
        if step < 0 and self.range is None:
            self._gap("reset: the counter fell")
            return
        if step < 0 and self.range is not None:
            step += self.range + 1
        if step > self.limit_per_second * (elapsed + SLACK_SECONDS):
            self._gap("reset: the counter jumped by more than the device can draw")
            return
        if self.range is not None and elapsed * self.limit_per_second > self.range:
            self._gap("ambiguous: the counter may have wrapped more than once")  # its own step is a lower bound
        else:
            self.covered_seconds += elapsed
        self.total += step

    def _gap(self, why: str) -> None:
        self.gaps += 1
        self.why = why


@dataclass(slots=True, kw_only=True)
class PowerSum:
    """Joules as the integral (trapezoid) of samples of power, for a device that has no energy counter."""

    sample_seconds: float
    """How often it is sampled; three times that without a sample is a gap."""
    total: float = 0.0
    gaps: int = 0
    why: str = ""
    covered_seconds: float = 0.0
    value: float | None = None
    """There is no counter behind it that another process could go on from."""
    _last: tuple[float, float] | None = None

    def update(self, watts: float, at_seconds: float) -> None:
        """The device drew `watts` at monotonic time `at_seconds`."""
        last, self._last = self._last, (watts, at_seconds)
        if last is None:
            return
        elapsed = at_seconds - last[1]
        if not 0 <= elapsed <= 3 * self.sample_seconds:
            self.gaps += 1
            self.why = f"no sample of power for {elapsed:.0f} s"
            return
        self.total += (last[0] + watts) / 2 * elapsed
        self.covered_seconds += elapsed
