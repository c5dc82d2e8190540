"""The frontier of bytes against makespan, as `simulate --frontier` shows it: JSON for scripts, a table for people. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from datalocal.placement.frontier import Point
from datalocal.units import format_bytes, format_count, format_seconds, format_share


def frontier_json(shards: int, points: Sequence[Point]) -> list[dict[str, Any]]:
    """A row per point, shortest makespan first."""
    return [
        {
            "makespan": point.makespan_s,
            "local_share_bound": _share(shards, point),
            "non_local_at_least": point.non_local,
            "moved_bytes_at_least": point.moved_bytes_at_least,
            "moved_bytes": point.moved_bytes,
        }
        for point in points
    ]


def render(shards: int, points: Sequence[Point]) -> Group:
    """For the terminal: a row per point, and what one buys with time."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    for title in ("makespan", "local at most", "shards that must move", "bytes that must move", "optimal-bytes moves"):
        table.add_column(title, justify="right")
    for point in points:
        table.add_row(
            format_seconds(point.makespan_s),
            format_share(_share(shards, point)),
            format_count(point.non_local),
            format_bytes(point.moved_bytes_at_least),
            format_bytes(point.moved_bytes),
        )
    parts: list[RenderableType] = [Text("Bytes against makespan, beside the data", style="bold"), table]
    return Group(*parts, *(Text(f"  {line}") for line in sentences(shards, points)))


def sentences(shards: int, points: Sequence[Point]) -> list[str]:
    """What the table comes to."""
    first, last = points[0], points[-1]
    if first.makespan_s == last.makespan_s:
        return ["The shortest makespan already moves the fewest bytes: more time would save none."]
    longer = format_share(last.makespan_s / first.makespan_s - 1)
    told = [f"{longer} more time saves {format_bytes(first.moved_bytes - last.moved_bytes)}; --makespan picks a point."]
    if last.non_local:
        told.append(
            f"{format_count(last.non_local)} of {format_count(shards)} shards lie on no node that works: no time makes them local."
        )
    return told


def _share(shards: int, point: Point) -> float:
    return 1 - point.non_local / shards if shards else 1.0
