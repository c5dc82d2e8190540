"""From two readings of the hosts to rows of joules, each with its origin. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from datalocal.ledger.records import JouleOrigin
from datalocal.metering.counter import Counter
from datalocal.spec.cluster import PowerProfile

Reading = Mapping[str, Any]
SHORTEST_WINDOW_SECONDS = 0.1
"""Counters are updated about this often; a shorter window says nothing about its energy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JouleRow:
    """Energy of one component of one node in one stage; None is missing, and the reason says why."""

    stage: str
    node: str
    component: str
    joules: float | None
    origin: JouleOrigin
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        """The row as reports write it."""
        return {
            "stage": self.stage,
            "node": self.node,
            "component": self.component,
            "joules": self.joules,
            "origin": self.origin,
            "reason": self.reason,
        }


def joules(
    start: Mapping[str, Reading],
    end: Mapping[str, Reading],
    *,
    stage: str,
    nodes: Mapping[str, Sequence[str]],
    power: PowerProfile | None = None,
) -> list[JouleRow]:
    """Rows of one window over the readings of each host at its start and its end.

    `nodes` are the cluster's nodes on each host: a host that several share is counted once, under its own name. `power` is
    what the owner declares of a host; it counts where no CPU meter can be read. A GPU counts once, however many hosts
    list its UUID. A value with gaps is a lower bound and says so in its reason.
    """
    rows: list[JouleRow] = []
    for host in sorted({*start, *end, *nodes}):
        names = nodes.get(host, ())
        place = names[0] if len(names) == 1 else host
        shared = f"shared by {', '.join(names)}" if len(names) > 1 else ""
        listed = {row.component for row in rows if row.component.startswith("gpu ")}
        found = _host(stage, place, shared, start.get(host), end.get(host), power)
        rows += [row for row in found if row.component not in listed]
    return rows


def _host(
    stage: str, node: str, shared: str, start: Reading | None, end: Reading | None, power: PowerProfile | None
) -> list[JouleRow]:
    def row(component: str, value: float | None, origin: JouleOrigin, *reasons: str) -> JouleRow:
        reason = "; ".join(reason for reason in (*reasons, shared) if reason)
        return JouleRow(stage=stage, node=node, component=component, joules=value, origin=origin, reason=reason)

    if start is None or end is None:
        when = "beginning" if start is None else "end"
        return [row("host", None, "missing", f"no_reading: the meters were not read at the stage's {when}")]
    seconds = end["monotonic"] - start["monotonic"]
    if seconds <= 0:
        return [row("host", None, "missing", "below_resolution: the window has no length")]
    cpu = [row(_cpu_component(name), *window) for name, window in _windows("zone", start, end, seconds)]
    gpu = [
        row(f"gpu {name}".strip(), *window)
        for name, window in _windows("uuid", start, end, seconds)
        if not window[2].startswith("no_gpu")
    ]
    if power is not None and all(row.joules is None for row in cpu):
        counted = "its GPUs have meters of their own" if any(row.joules is not None for row in gpu) else ""
        share = _busy_share(start, end)
        value = seconds * (power.idle_watts + (power.busy_watts - power.idle_watts) * share)
        declared = f"declared: {power.idle_watts:g} W idle, {power.busy_watts:g} W busy; {100 * share:.0f} % busy"
        cpu = [row("host", value, "assumed", declared, counted)]
    return cpu + gpu


def _windows(
    key: str, start: Reading, end: Reading, seconds: float
) -> list[tuple[str, tuple[float | None, JouleOrigin, str]]]:
    """Per meter: joules, origin and reason of the window."""
    kind = {"zone": "rapl", "uuid": "gpus"}[key]
    first = {entry[key]: entry for entry in start[kind]}
    last = {entry[key]: entry for entry in end[kind]}
    same = start["meter"] == end["meter"]
    return [(name, _window(first.get(name), last.get(name), seconds, same=same)) for name in sorted({*first, *last})]


def _window(
    first: Reading | None, last: Reading | None, seconds: float, *, same: bool
) -> tuple[float | None, JouleOrigin, str]:
    if last is None or first is None:
        return None, "missing", "lost: the meter was there at one end of the stage only"
    if first["joules"] is None or last["joules"] is None:
        return None, "missing", last["reason"] or first["reason"]
    if not same:
        return _from_bare_counters(first, last, seconds)
    value, origin = last["joules"] - first["joules"], last["origin"]
    if value == 0:  # nothing that runs draws nothing: this is no reading
        still = f"stuck: the meter stood still for {seconds:.1f} s"
        return None, "missing", last["reason"] or (_below_resolution() if seconds < SHORTEST_WINDOW_SECONDS else still)
    gaps = last["gaps"] - first["gaps"]
    lower = ""
    if gaps or (last["reason"] and not _is_old_gap(first, last)):
        share = min(1.0, (last["covered_seconds"] - first["covered_seconds"]) / seconds)
        told = f"{gaps} gap(s), " if gaps else ""
        lower = f"lower bound, {told}{100 * share:.0f} % of the time covered: {last['reason']}"
    elif seconds < SHORTEST_WINDOW_SECONDS:
        lower = _below_resolution()
    return value, origin, lower


def _from_bare_counters(first: Reading, last: Reading, seconds: float) -> tuple[float | None, JouleOrigin, str]:
    """The process that read the meters was replaced within the stage: only the device's own counter spans both."""
    if first["counter_joules"] is None or last["counter_joules"] is None or last["limit_watts"] is None:
        return None, "missing", "restarted: another process reads this host's meters now"
    counter = Counter(limit_per_second=last["limit_watts"], range=last["range_joules"])
    counter.update(first["counter_joules"], 0.0)
    counter.update(last["counter_joules"], seconds)
    if counter.gaps or not counter.total:
        return None, "missing", f"restarted: another process reads this host's meters now; {counter.why}".rstrip("; ")
    return counter.total, "measured.counter", ""


def _below_resolution() -> str:
    return f"below_resolution: the window is shorter than {SHORTEST_WINDOW_SECONDS} s"


def _is_old_gap(first: Reading, last: Reading) -> bool:
    """Whether the reason at the end is that of a gap before the window."""
    return bool(first["gaps"]) and first["reason"] == last["reason"]


def _cpu_component(zone: str) -> str:
    if zone == "cpu":
        return "cpu"
    return f"dram {zone.removesuffix('/dram')}" if zone.endswith("/dram") else f"cpu {zone}"


def _busy_share(start: Reading, end: Reading) -> float:
    total = end["cpu_total_seconds"] - start["cpu_total_seconds"]
    busy = end["cpu_busy_seconds"] - start["cpu_busy_seconds"]
    return min(1.0, max(0.0, busy / total)) if total > 0 else 0.0
