"""One cumulative energy counter that may wrap or be reset between two looks at it. Pure: the caller brings value and time."""

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
    _last: tuple[float, float] | None = None

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
        self.total += step

    def _gap(self, why: str) -> None:
        self.gaps += 1
        self.why = why
