"""Placements side by side, as `simulate` shows them: JSON for scripts, a table and the certificate for people. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from datalocal.estimate.bottleneck import Bottleneck
from datalocal.placement.certificate import Certificate, gap, sentences
from datalocal.placement.model import Tier
from datalocal.placement.problem import Assigned, Problem
from datalocal.units import format_bytes, format_count, format_seconds, format_share

SCHEMA = "datalocal.plan/1"
_NO_JOULES = "no node of this cluster has a power profile"


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """One policy's answer, what it takes, and how long it took to find."""

    answer: Assigned
    certificate: Certificate
    """For the answer's makespan: it bounds every policy."""
    bound: Bottleneck
    plan_seconds: float


def to_json(problem: Problem, placed: Sequence[Placed]) -> dict[str, Any]:
    """{schema, arms, verdict}: the contract that `plan` and `simulate` share. `gap` is in shards, `makespan` in seconds."""
    return {
        "schema": SCHEMA,
        "shards": problem.shards,
        "nodes": problem.nodes,
        "arms": [_arm(problem, each) for each in placed],
        "verdict": verdict(problem, placed),
    }


def _arm(problem: Problem, placed: Placed) -> dict[str, Any]:
    answer, certificate = placed.answer, placed.certificate
    moved = answer.moved_bytes(problem)
    return {
        "policy": answer.policy,
        "origin": "modelled.bottleneck",
        "seconds": placed.bound.seconds,
        "bottleneck": placed.bound.what,
        "bytes": [{"class": "input", "tier": tier.name.lower(), "bytes": moved[tier]} for tier in Tier],
        "joules": [{"component": "nodes", "joules": None, "origin": "missing", "reason": _NO_JOULES}],
        "local_share": answer.local / max(problem.shards, 1),
        "local_share_bound": certificate.local_share_bound,
        "gap": gap(problem, certificate, answer).shards,
        "makespan": answer.makespan_s,
        "certificate": {
            "nodes": [problem.node_names[int(node)] for node in certificate.nodes],
            "shards": certificate.enclosed,
            "capacity": certificate.capacity,
            "non_local_at_least": certificate.non_local_at_least,
        },
        "plan_seconds": placed.plan_seconds,
        "notes": list(answer.notes),
    }


def verdict(problem: Problem, placed: Sequence[Placed]) -> dict[str, Any]:
    """{choice, sentence, because}. The choice is `none`: all placements work on the same nodes, nothing central stands beside."""
    best = min(placed, key=lambda each: (_moved(problem, each.answer), each.bound.seconds, each.answer.policy))
    because = [
        line
        for each in placed
        for line in sentences(problem, each.certificate, each.answer)[: None if each is best else 1]
    ]
    return {
        "choice": "none",
        "sentence": f"{best.answer.policy} moves the fewest bytes: {format_bytes(_moved(problem, best.answer))}, and takes at "
        f"least {format_seconds(best.bound.seconds)} ({best.bound.what}). No central arm was asked for.",
        "because": because,
    }


def _moved(problem: Problem, answer: Assigned) -> int:
    return sum(size for tier, size in answer.moved_bytes(problem).items() if tier != Tier.NODE_LOCAL)


def render(problem: Problem, placed: Sequence[Placed]) -> Group:
    """For the terminal: a row per policy, then the certificate of the best one and what would help."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("policy", no_wrap=True)
    for title in ("local", "bound", "gap", "in rack", "off rack", "takes at least"):
        table.add_column(title, justify="right", no_wrap=True)
    for each in placed:
        moved: Mapping[Tier, int] = each.answer.moved_bytes(problem)
        table.add_row(
            each.answer.policy,
            format_share(each.answer.local / max(problem.shards, 1)),
            format_share(each.certificate.local_share_bound),
            format_count(gap(problem, each.certificate, each.answer).shards),
            format_bytes(moved[Tier.RACK_LOCAL]),
            format_bytes(moved[Tier.OFF_RACK]),
            f"{format_seconds(each.bound.seconds)} ({each.bound.what})",
        )
    told = verdict(problem, placed)
    title = f"{format_count(problem.shards)} shards, {format_count(problem.nodes)} nodes"
    parts: list[RenderableType] = [Text(title, style="bold"), table, Text(told["sentence"], style="bold")]
    parts += [Text(f"  {line}") for line in told["because"]]
    parts += [Text(f"  {note}") for each in placed for note in each.answer.notes]
    parts.append(
        Text("Times are lower bounds: the busiest node, link or uplink, with everything else overlapped with it.")
    )
    return Group(*parts)
