"""The report for a terminal, as something that rich can print."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from datalocal.report import mixture, view
from datalocal.report.cuts import cut_line
from datalocal.report.prediction import lines as prediction_lines
from datalocal.report.traffic import CLASSES
from datalocal.report.witnesses import in_words
from datalocal.units import format_bytes, format_count, format_rate, format_ratio, format_seconds

_STATES = {"completed": "green", "failed": "red", "cancelled": "yellow", "running": "cyan"}
_SHOWN = 5
_WORDS, _FIGURE, _GAP, _WIDTH = 19, 9, 2, 80
"""Characters of the first column, of a figure, between columns, and of a narrow terminal."""


def render(report: Mapping[str, Any]) -> Group:
    """Verdict, arms side by side, samples, gradients, what was not local and why, damage, errors, assumptions."""
    run = report["run"]
    parts: list[RenderableType] = [
        Text(
            f"Run {run['id']}: {run['job']} on {run['cluster']}, seed {run['seed']}, {format_seconds(run['seconds'])}"
        ),
        Text(report["verdict"]["sentence"], style="bold"),
        *_items("", report["verdict"]["because"]),
        *map(_arms, _abreast(report["arms"])),
        *_items("Samples", [line for arm in report["arms"] for line in _samples(arm)]),
        *_items("Shuffle", [line for arm in report["arms"] for line in _mixing(arm)]),
        *_items("Gradients", [line for arm in report["arms"] for line in _gradients(arm)]),
        *_items("Foretold, and measured", [line for arm in report["arms"] for line in prediction_lines(arm)]),
        *_items("Cut", [f"{arm['policy']}: {cut_line(arm['cut'])}" for arm in report["arms"] if arm.get("cut")]),
        *_items("Not local", [line for arm in report["arms"] for line in _not_local(arm)]),
        *_items("What went wrong on the way", [line for arm in report["arms"] for line in _trouble(arm)]),
        *_items("Witnesses", [*in_words(report.get("witnesses", ())), *report.get("witness_remarks", ())]),
        *_items("Joules that are missing", _missing_joules(report)),
        *_items("To know", report.get("assumptions", [])),
    ]
    return Group(*parts)


def _items(title: str, lines: list[str]) -> list[RenderableType]:
    if not lines:
        return []
    listed = [Padding(Text(f"- {line}"), (0, 0, 0, 2)) for line in lines]
    return [Text(f"\n{title}", style="bold"), *listed] if title else list(listed)


def _abreast(arms: list[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """As many arms next to each other as fit into a narrow terminal without a name being broken."""
    blocks: list[list[Mapping[str, Any]]] = [[]]
    width = _WORDS
    for arm in arms:
        more = _GAP + max(len(arm["policy"]), _FIGURE)
        if blocks[-1] and width + more > _WIDTH - _GAP:
            blocks.append([])
            width = _WORDS
        blocks[-1].append(arm)
        width += more
    return blocks


def _arms(arms: list[Mapping[str, Any]]) -> RenderableType:
    """A column per arm, so that it stays readable in a narrow terminal."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("")
    for arm in arms:
        table.add_column(Text(arm["policy"], style="bold"), overflow="fold")
    table.add_row("state", *(Text(arm["state"], style=_STATES[arm["state"]]) for arm in arms))
    for name in view.stage_names(arms):
        found = [view.stage_named(arm, name) for arm in arms]
        table.add_row(f"{name}: time", *(format_seconds(s["seconds"]) if s else "-" for s in found))
        table.add_row(f"{name}: images", *(format_rate(s.get("images_per_second")) if s else "-" for s in found))
    table.add_row("accuracy", *(view.accuracy(arm) for arm in arms))
    table.add_row("read from own disk", *(view.local_share(arm) for arm in arms))
    table.add_row(
        Text("bytes off node", style="bold"),
        *(Text(format_bytes(arm["headline_bytes"]["off_node"]), style="bold") for arm in arms),
    )
    for class_ in CLASSES:
        moved = [arm["headline_bytes"]["by_class"].get(class_, 0) for arm in arms]
        if any(moved):
            table.add_row(f"  {class_}", *(format_bytes(count) for count in moved))
    table.add_row("  all off rack", *(format_bytes(arm["headline_bytes"]["off_rack"]) for arm in arms))
    table.add_row("joules", *(view.joules_short(arm) for arm in arms))
    return Padding(table, (1, 0, 0, 0))


def _samples(arm: Mapping[str, Any]) -> list[str]:
    return [f"{arm['policy']}, {stage['name']}: {view.samples_in_words(stage)}" for stage in view.train_stages(arm)]


def _mixing(arm: Mapping[str, Any]) -> list[str]:
    return [f"{arm['policy']}, {name}: {mixture.in_words(figures)}" for name, figures in view.mixing(arm)]


def _gradients(arm: Mapping[str, Any]) -> list[str]:
    lines = []
    for stage in view.train_stages(arm):
        figures = stage.get("gradients")
        if figures and figures["theory_bytes"]:
            lines.append(
                f"{arm['policy']}, {stage['name']}: {format_bytes(figures['payload_bytes'])} sent, "
                f"{format_bytes(figures['theory_bytes'])} in theory (ratio {format_ratio(figures['ratio'])}), "
                f"{format_bytes(figures['logical_bytes'])} of gradients"
            )
    return lines


def _not_local(arm: Mapping[str, Any]) -> list[str]:
    return [
        f"{arm['policy']}, {group.stage or 'plan'}: {format_count(len(group.shards))} shards: {group.reason}"
        for group in view.not_local_groups(arm)
    ] + [f"{arm['policy']}, {remark}" for remark in arm.get("remarks", ())]


def _trouble(arm: Mapping[str, Any]) -> list[str]:
    policy = arm["policy"]
    lines = [f"{policy} {arm['state']}: {arm['error']}"] if arm.get("error") else []
    lines += [f"{policy}: {node} was lost" for node in arm.get("nodes_lost", ())]
    replaced = arm.get("replaced", ())
    if replaced:
        causes = ", ".join(dict.fromkeys(row["cause"].splitlines()[0] for row in replaced if row["cause"]))
        lines.append(f"{policy}: {format_count(len(replaced))} tasks were placed again ({causes})")
    damaged = arm.get("damaged", ())
    if damaged:
        named = "; ".join(
            f"{d['path'] or d['shard'] + ' row ' + str(d['row'])}: {d['problem']}" for d in damaged[:_SHOWN]
        )
        more = f"; and {format_count(len(damaged) - _SHOWN)} more" if len(damaged) > _SHOWN else ""
        lines.append(f"{policy}: {format_count(len(damaged))} damaged images left out: {named}{more}")
    return lines


def _missing_joules(report: Mapping[str, Any]) -> list[str]:
    reasons = {
        f"{row['component']}: {row['reason']}"
        for arm in report["arms"]
        for row in arm["joules"]
        if row["joules"] is None
    }
    return sorted(reasons)
