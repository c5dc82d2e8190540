"""What the plan foretold beside what was measured, arm by arm. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from datalocal.report.traffic import CLASSES
from datalocal.units import format_bytes, format_ratio, format_seconds

Row = dict[str, Any]


def prediction(
    foretold: Mapping[str, Any] | None, rows: Sequence[Mapping[str, Any]], stages: Sequence[Mapping[str, Any]]
) -> dict[str, Any] | None:
    """{origin, source, rows: [{figure, of, predicted, measured, ratio, reason}], assumptions}; None where nothing was foretold.

    `rows` and `stages` are the arm's own in the report. Bytes are those that left a node, of each class but `control`; seconds
    are those of each stage. `predicted` is null, with a reason, where nobody could know.
    """
    if foretold is None:
        return None
    return {
        "origin": foretold["origin"],
        "source": foretold["source"],
        "rows": [*_bytes(foretold, rows), *_seconds(foretold, stages)],
        "assumptions": foretold["assumptions"],
    }


def _bytes(foretold: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> list[Row]:
    measured: Counter[str] = Counter()
    predicted: Counter[str] = Counter()
    unknown: dict[str, str] = {}
    for row in rows:
        if row["source"] != row["destination"]:
            measured[row["class"]] += row["bytes"]
    for row in foretold["bytes"]:
        if row["source"] == row["destination"]:
            continue
        if row["bytes"] is None:
            unknown[row["class"]] = row["reason"]
        else:
            predicted[row["class"]] += row["bytes"]
    return [
        _row(
            "bytes", class_, None if class_ in unknown else predicted[class_], measured[class_], unknown.get(class_, "")
        )
        for class_ in CLASSES
        if class_ != "control" and (measured[class_] or predicted[class_] or class_ in unknown)
    ]


def _seconds(foretold: Mapping[str, Any], stages: Sequence[Mapping[str, Any]]) -> list[Row]:
    told = {stage["stage"]: stage for stage in foretold["stages"]}
    return [
        _row("seconds", stage["name"], told[stage["name"]]["seconds"], stage["seconds"], told[stage["name"]]["reason"])
        for stage in stages
        if stage["name"] in told
    ]


def _row(figure: str, of: str, predicted: float | None, measured: float, reason: str) -> Row:
    return {
        "figure": figure,
        "of": of,
        "predicted": predicted,
        "measured": measured,
        "ratio": predicted / measured if predicted is not None and measured else None,
        "reason": reason,
    }


def cells(row: Mapping[str, Any]) -> tuple[str, str, str, str]:
    """(what, predicted, measured, ratio) as text."""
    form = format_bytes if row["figure"] == "bytes" else format_seconds
    predicted = "not known" if row["predicted"] is None else form(row["predicted"])
    return f"{row['figure']}, {row['of']}", predicted, form(row["measured"]), format_ratio(row["ratio"])


def lines(arm: Mapping[str, Any]) -> list[str]:
    """A line per arm for the terminal."""
    told = arm.get("prediction")
    if not told or not told["rows"]:
        return []
    parts = []
    for row in told["rows"]:
        what, predicted, measured, ratio = cells(row)
        if row["predicted"] is not None:
            parts.append(f"{what} {predicted}, measured {measured} (ratio {ratio})")
    unknown = sorted({row["of"] for row in told["rows"] if row["predicted"] is None})
    if unknown:
        parts.append(f"not known beforehand: {', '.join(unknown)}")
    return [f"{arm['policy']}: {'; '.join(parts)}"]
