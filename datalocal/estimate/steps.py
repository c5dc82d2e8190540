"""What hides behind what: reading behind working within a task, a ring all-reduce behind computing within a step. Pure."""

from __future__ import annotations

GAMMA = 2.0
"""How far synchronisation hides behind computing where nobody measured it: 1 not at all, without limit wholly."""


def step_seconds(compute_seconds: float, sync_seconds: float, gamma: float = GAMMA) -> float:
    """(Tc^g + Ts^g)^(1/g), also of many steps that are alike (Qiao et al., Pollux, OSDI 2021, for the form)."""
    return float((compute_seconds**gamma + sync_seconds**gamma) ** (1 / gamma))


def ring_seconds(ranks: int, gradient_bytes: float, bytes_per_second: float, latency_seconds: float = 0.0) -> float:
    """One all-reduce of m ranks: 2 (m - 1) hops, each a latency and an m-th of the gradients over the slowest link.

    0 for a single rank (Patarasuk and Yuan, J. Parallel Distrib. Comput. 69, 2009).
    """
    return 2 * (ranks - 1) * (latency_seconds + gradient_bytes / ranks / bytes_per_second)


def read_ahead_seconds(reading_seconds: float, working_seconds: float, pieces: float) -> float:
    """A task that reads each piece while it works on the one before; `pieces` are alike, and 1 leaves nothing to hide behind.

    The makespan of n equal jobs in a flow shop of two machines: r / n + w / n + (n - 1) / n max(r, w) (Johnson, Naval Res.
    Logist. Q. 1, 1954).
    """
    n = max(1.0, pieces)
    return (reading_seconds + working_seconds) / n + (1 - 1 / n) * max(reading_seconds, working_seconds)
