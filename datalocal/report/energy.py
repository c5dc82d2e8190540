"""Joules of an arm, from the readings at the ends of its stages. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from datalocal.metering.rows import JouleRow, joules
from datalocal.spec.cluster import Cluster

Event = Mapping[str, Any]
_WEAKEST = ("missing", "assumed", "modelled.profile", "measured.sampled", "measured.counter")


def joule_rows(stages: Iterable[str], events: Sequence[Event], cluster: Cluster, hosts: Mapping[str, str]) -> list[Any]:
    """Rows {stage, node, component, joules, origin, reason}; `hosts` is the physical host of each node, where known."""
    rows: list[JouleRow] = []
    for stage in stages:
        own = [event for event in events if event["type"] == "meters" and event["stage"] == stage]
        parts = [
            joules(start, end, stage=stage, nodes=_nodes_on(cluster, hosts, {*start, *end}), power=cluster.power)
            for start, end in _pairs(own)
        ]
        rows += _together(parts)
    return [row.to_json() for row in rows]


def _pairs(own: Sequence[Event]) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """Readings at the beginning and at the end of each time the stage was worked on."""
    pairs: list[tuple[Mapping[str, Any], Mapping[str, Any]]] = []
    start: Mapping[str, Any] | None = None
    for event in own:
        if event["when"] == "start":
            if start is not None:
                pairs.append((start, {}))
            start = event["hosts"]
        elif start is not None:
            pairs.append((start, event["hosts"]))
            start = None
    if start is not None:
        pairs.append((start, {}))
    return pairs


def _nodes_on(cluster: Cluster, hosts: Mapping[str, str], read: set[str]) -> dict[str, list[str]]:
    names = [node.name for node in cluster.nodes]
    if not hosts and len(read) == 1:
        return {next(iter(read)): names}
    found: dict[str, list[str]] = {host: [] for host in read}
    for name in names:
        if name in hosts:
            found.setdefault(hosts[name], []).append(name)
    return found


def _together(parts: Sequence[list[JouleRow]]) -> list[JouleRow]:
    """Add up the windows of a stage that was resumed; one that is missing makes the sum a missing one."""
    if len(parts) <= 1:
        return parts[0] if parts else []
    rows: dict[tuple[str, str], JouleRow] = {}
    seen: dict[tuple[str, str], int] = {}
    for row in (row for part in parts for row in part):
        key = (row.node, row.component)
        seen[key] = seen.get(key, 0) + 1
        rows[key] = _add(rows[key], row) if key in rows else row
    return [
        row if seen[key] == len(parts) else replace(row, joules=None, origin="missing", reason=_unfinished(row.reason))
        for key, row in rows.items()
    ]


def _unfinished(reason: str) -> str:
    return "; ".join(filter(None, ("no_reading: part of the stage was not metered", reason)))


def _add(first: JouleRow, second: JouleRow) -> JouleRow:
    origin = min(first.origin, second.origin, key=_WEAKEST.index)
    total = None if first.joules is None or second.joules is None else first.joules + second.joules
    reasons = dict.fromkeys(reason for reason in (first.reason, second.reason) if reason)
    return replace(first, joules=total, origin=origin, reason="; ".join(reasons))
