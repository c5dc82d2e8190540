"""Placements side by side, as `simulate` shows them: JSON for scripts, a table and the certificate for people. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from datalocal.estimate.bottleneck import Bottleneck
from datalocal.estimate.cost import wire
from datalocal.estimate.simulation import Simulated
from datalocal.placement.certificate import Certificate, gap, sentences
from datalocal.placement.losses import Losses
from datalocal.placement.model import Tier
from datalocal.placement.problem import Assigned, Problem
from datalocal.report.losses import losses_json
from datalocal.report.planned import SCHEMA
from datalocal.report.verdict import ADVICE, MARGIN, choice_of
from datalocal.units import format_bytes, format_count, format_joules, format_seconds, format_share

_NO_JOULES = "no node of this cluster has a power profile"


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """One policy's answer, what it takes, and how long it took to find."""

    answer: Assigned
    certificate: Certificate
    """For the answer's makespan: it bounds every policy."""
    bound: Bottleneck
    simulated: Simulated
    """In all epochs."""
    bytes: dict[tuple[str, Tier], int]
    """By class and tier, in all epochs."""
    working_slots: int
    """GPUs (or tasks) at a time, of all nodes that work."""
    slot_seconds: float
    """Of all slots that are held: what ways of working with other numbers of GPUs are compared by."""
    plan_seconds: float
    notes: tuple[str, ...] = field(default=())
    losses: Losses | None = None
    """None: nobody asked what losing nodes costs."""

    @property
    def moved_bytes(self) -> int:
        """What leaves a node, all classes."""
        return sum(size for (_, tier), size in self.bytes.items() if tier != Tier.NODE_LOCAL)


def to_json(problem: Problem, placed: Sequence[Placed], notes: Sequence[str] = ()) -> dict[str, Any]:
    """{schema, arms, verdict}: the contract that `plan` and `simulate` share. `gap` is in shards, `makespan` in seconds."""
    return {
        "schema": SCHEMA,
        "shards": problem.shards,
        "nodes": problem.nodes,
        "arms": [_arm(problem, each) for each in placed],
        "verdict": verdict(problem, placed, notes),
    }


def _arm(problem: Problem, placed: Placed) -> dict[str, Any]:
    answer, certificate, simulated = placed.answer, placed.certificate, placed.simulated
    return {
        "policy": answer.policy,
        "origin": "simulated",
        "seconds": simulated.seconds,
        "seconds_reason": "",
        "bottleneck": simulated.bottleneck,
        "seconds_of": {
            "compute": simulated.compute_seconds,
            "disk": simulated.disk_seconds,
            "network": simulated.network_seconds,
            "sync": simulated.sync_seconds,
            "waiting": simulated.waiting_seconds,
            "serving": simulated.serving_seconds,
        },
        "bound_seconds": placed.bound.seconds,
        "bound_of": placed.bound.what,
        "bytes": [
            {"class": class_, "tier": tier.name.lower(), "bytes": size}
            for (class_, tier), size in sorted(placed.bytes.items())
        ],
        "joules": _joules(placed),
        "local_share": answer.local / max(problem.shards, 1),
        "local_share_bound": certificate.local_share_bound,
        "gap": gap(problem, certificate, answer).shards,
        "makespan": answer.makespan_s,
        "certificate": certificate.to_json(problem.node_names),
        "plan_seconds": placed.plan_seconds,
        "slots": placed.working_slots,
        "slot_seconds": placed.slot_seconds,
        "notes": [*answer.notes, *placed.notes],
        **(losses_json(problem.node_names, placed.losses) if placed.losses is not None else {}),
    }


def _joules(placed: Placed) -> list[dict[str, Any]]:
    idle, busy = placed.simulated.idle_joules, placed.simulated.busy_joules
    if idle is None or busy is None:
        return [{"component": "nodes", "joules": None, "origin": "missing", "reason": _NO_JOULES}]
    watts = "watts of the preset, of the nodes that work or serve"
    return [
        {"component": "nodes idle", "joules": idle, "origin": "assumed", "reason": watts},
        {"component": "nodes busy", "joules": busy, "origin": "assumed", "reason": f"{watts}, above idle"},
        wire(placed.moved_bytes),
    ]


def verdict(problem: Problem, placed: Sequence[Placed], notes: Sequence[str] = ()) -> dict[str, Any]:
    """{choice, sentence, because}: by bytes that leave a node; seconds and GPU-seconds are told beside."""
    ranked = sorted(placed, key=lambda each: (each.moved_bytes, each.simulated.seconds, each.answer.policy))
    best = ranked[0]
    because = [
        line
        for each in placed
        for line in sentences(problem, each.certificate, each.answer)[: None if each is best else 1]
    ]
    because += [_time(each) for each in placed]
    choice = choice_of(best.answer.policy)
    rival = next((each for each in ranked if choice_of(each.answer.policy) != choice), None)
    least = f"{best.answer.policy} moves the fewest bytes: {format_bytes(best.moved_bytes)}"
    if rival is None:
        what = "No central arm was asked for." if choice == "local" else "No other way of working was asked for."
        return {
            "choice": "none",
            "sentence": f"{least}, and takes {format_seconds(best.simulated.seconds)} ({best.simulated.bottleneck}). {what}",
            "because": [*because, *notes],
        }
    because += _by_time(placed, choice)
    pair = f"{least}, {rival.answer.policy} {format_bytes(rival.moved_bytes)}"
    if rival.moved_bytes - best.moved_bytes < MARGIN * max(rival.moved_bytes, 1):
        return {"choice": "none", "sentence": f"No difference in bytes: {pair}.", "because": [*because, *notes]}
    return {"choice": choice, "sentence": f"{ADVICE[choice]}: {pair}.", "because": [*because, *notes]}


def _time(placed: Placed) -> str:
    simulated = placed.simulated
    serving = (
        f", {format_seconds(simulated.serving_seconds)} of it because nodes serve others beside their own work"
        if simulated.serving_seconds > MARGIN * simulated.seconds
        else ""
    )
    return (
        f"{placed.answer.policy}: {format_seconds(simulated.seconds)} on {format_count(placed.working_slots)} GPUs or slots, "
        f"waiting for {simulated.bottleneck}{serving}."
    )


def _by_time(placed: Sequence[Placed], choice: str) -> list[str]:
    """Time at equal GPUs: as if each way of working had the slots of the other, and nothing else of it."""
    told = []
    quick = min(placed, key=lambda each: (each.simulated.seconds, each.answer.policy))
    frugal = min(placed, key=lambda each: (each.slot_seconds, each.answer.policy))
    if choice_of(quick.answer.policy) != choice:
        told.append(f"By time the answer would be another: {quick.answer.policy} is done first.")
    if choice_of(frugal.answer.policy) != choice:
        told.append(
            f"By GPU-seconds, that is at equal GPUs, the answer would be another: {frugal.answer.policy} takes "
            f"{format_count(frugal.slot_seconds)}."
        )
    return told


def render(problem: Problem, placed: Sequence[Placed], notes: Sequence[str] = ()) -> Group:
    """For the terminal: a row per policy, then the certificate of the best one and what would help."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("policy", no_wrap=True)
    for title in ("local", "bound", "gap", "in rack", "off rack", "time", "joules"):
        table.add_column(title, justify="right", no_wrap=True)
    for each in placed:
        known = [row["joules"] for row in _joules(each)]
        table.add_row(
            each.answer.policy,
            format_share(each.answer.local / max(problem.shards, 1)),
            format_share(each.certificate.local_share_bound),
            format_count(gap(problem, each.certificate, each.answer).shards),
            format_bytes(_over(each, Tier.RACK_LOCAL)),
            format_bytes(_over(each, Tier.OFF_RACK)),
            format_seconds(each.simulated.seconds),
            format_joules(None if None in known else sum(known)),
        )
    told = verdict(problem, placed, notes)
    title = f"{format_count(problem.shards)} shards, {format_count(problem.nodes)} nodes"
    parts: list[RenderableType] = [Text(title, style="bold"), table, Text(told["sentence"], style="bold")]
    parts += [Text(f"  {line}") for line in told["because"]]
    parts += [Text(f"  {note}") for each in placed for note in (*each.answer.notes, *each.notes)]
    parts.append(Text("Times are simulated."))
    return Group(*parts)


def _over(placed: Placed, tier: Tier) -> int:
    return sum(size for (_, own), size in placed.bytes.items() if own == tier)
