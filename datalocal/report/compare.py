"""Finished runs of the same job side by side: medians and spread of each policy. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from datalocal.errors import RequestError
from datalocal.units import format_bytes, format_joules, format_seconds, format_share

Report = Mapping[str, Any]
SCHEMA = "datalocal.compare/1"
ENOUGH = 5
"""Repetitions from which medians of seconds and joules mean something on a busy machine."""

_FREE = ("seed", "policies")
"""Keys of a job that may differ: repetitions draw other seeds, and arms may be spread over runs."""


def compare(reports: Sequence[Report]) -> dict[str, Any]:
    """{schema, job, dataset, runs, policies: [{policy, arms, completed, median, lowest, highest}], remarks}.

    `arms` has a row for each arm of that policy; median, lowest and highest are those of completed arms, None where no arm
    has the figure. Raises RequestError when the runs are not of one job, naming what differs.
    """
    if not reports:
        raise RequestError("there is no run to compare", "`datalocal list` shows the runs")
    first = reports[0]
    for other in reports[1:]:
        _same_job(first, other)
    twice = [run for run in (r["run"]["id"] for r in reports) if sum(r["run"]["id"] == run for r in reports) > 1]
    if twice:
        raise RequestError(f"run {twice[0]} is named twice", "name each run once: a run is no repetition of itself")
    policies = dict.fromkeys(arm["policy"] for report in reports for arm in report["arms"])
    return {
        "schema": SCHEMA,
        "job": first["run"]["job"],
        "dataset": first["run"].get("dataset"),
        "runs": [
            {key: report["run"].get(key) for key in ("id", "cluster", "seed", "seconds", "version")}
            for report in reports
        ],
        "policies": [_policy(policy, reports) for policy in policies],
        "remarks": _remarks(reports),
    }


def _same_job(first: Report, other: Report) -> None:
    mine, theirs = _job(first), _job(other)
    differing = [
        f"{key}: {mine.get(key, 'not set')} and {theirs.get(key, 'not set')}"
        for key in sorted({*mine, *theirs})
        if mine.get(key) != theirs.get(key)
    ]
    if differing:
        raise RequestError(
            f"{first['run']['id']} and {other['run']['id']} are not runs of the same job\n  " + "\n  ".join(differing),
            "compare runs whose jobs differ in nothing but seed and policies",
        )


def _job(report: Report) -> dict[str, Any]:
    """The job as flat keys, e.g. `train.epochs`."""
    run = report["run"]
    spec = run.get("job_spec") or {"name": run["job"], "dataset": run.get("dataset")}
    return {key: value for key, value in _flat(spec).items() if key.split(".")[0] not in _FREE}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _policy(policy: str, reports: Sequence[Report]) -> dict[str, Any]:
    arms = [
        {"run": report["run"]["id"], "seed": report["run"]["seed"], **_figures(arm)}
        for report in reports
        for arm in report["arms"]
        if arm["policy"] == policy
    ]
    completed = [arm for arm in arms if arm["state"] == "completed"]
    known = {key: [arm[key] for arm in completed if arm[key] is not None] for key in _FORMATS}
    return {
        "policy": policy,
        "arms": arms,
        "completed": len(completed),
        "median": {key: statistics.median(values) if values else None for key, values in known.items()},
        "lowest": {key: min(values, default=None) for key, values in known.items()},
        "highest": {key: max(values, default=None) for key, values in known.items()},
    }


def _figures(arm: Mapping[str, Any]) -> dict[str, Any]:
    off = [row for row in arm["bytes"] if row["source"] != row["destination"]]
    accuracies = [stage["accuracy"] for stage in arm["stages"] if stage["accuracy"] is not None]
    joules = [row["joules"] for row in arm["joules"]]
    whole = bool(joules) and not any(row["joules"] is None or "lower bound" in row["reason"] for row in arm["joules"])
    return {
        "state": arm["state"],
        "off_node_bytes": sum(row["bytes"] for row in off),
        "off_rack_bytes": sum(row["bytes"] for row in off if row["tier"] == "off_rack"),
        "seconds": sum(stage["seconds"] for stage in (*arm.get("staging", ()), *arm["stages"])),
        "joules": sum(joules) if whole else None,
        "accuracy": accuracies[-1] if accuracies else None,
    }


def _remarks(reports: Sequence[Report]) -> list[str]:
    """What differs between the runs and does not forbid to compare them."""
    told = []
    for key, what in (("cluster_spec", "clusters"), ("code", "code"), ("version", "versions of datalocal")):
        if any(report["run"].get(key) != reports[0]["run"].get(key) for report in reports[1:]):
            told.append(f"The runs differ in their {what}.")
    if len(reports) < ENOUGH:
        told.append(f"Fewer than {ENOUGH} runs: their seconds and joules differ by chance, make no claim of them.")
    if any(report.get("shared_host") for report in reports):
        told.append(
            "Nodes shared one physical host: seconds and joules are not those of a cluster, compare the bytes alone."
        )
    return told


_FORMATS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "off_node_bytes": ("bytes off node", format_bytes),
    "off_rack_bytes": ("bytes off rack", format_bytes),
    "seconds": ("time", format_seconds),
    "joules": ("joules", format_joules),
    "accuracy": ("accuracy", format_share),
}


def render(comparison: Mapping[str, Any]) -> Group:
    """For the terminal: a row per policy, median and (lowest to highest) where there are several runs."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("policy")
    table.add_column("runs", justify="right")
    for title, _ in _FORMATS.values():
        table.add_column(title, justify="right")
    for row in comparison["policies"]:
        cells = [_cell(row, key, form) for key, (_, form) in _FORMATS.items()]
        table.add_row(row["policy"], f"{row['completed']} of {len(row['arms'])}", *cells)
    runs = ", ".join(run["id"] for run in comparison["runs"])
    parts: list[RenderableType] = [Text(f"{comparison['job']} on {comparison['dataset']}: {runs}", style="bold"), table]
    parts += [Padding(Text(f"- {remark}"), (0, 0, 0, 2)) for remark in comparison["remarks"]]
    return Group(*parts)


def _cell(row: Mapping[str, Any], key: str, form: Callable[[Any], str]) -> str:
    middle, low, high = row["median"][key], row["lowest"][key], row["highest"][key]
    if middle is None:
        return "missing" if key == "joules" and row["completed"] else "-"
    return form(middle) if low == high else f"{form(middle)} ({form(low)} to {form(high)})"
