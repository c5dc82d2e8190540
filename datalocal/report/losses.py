"""What losing nodes costs, as `simulate --lose` shows it: JSON for scripts, a table and the last proof for people. Pure."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from datalocal.placement.certificate import proof
from datalocal.placement.losses import Losses
from datalocal.placement.problem import Names
from datalocal.units import format_bytes, format_count, format_seconds


def losses_json(names: Names, losses: Losses) -> dict[str, Any]:
    """{losses, losses_reason}: a row per node, in the order in which they are lost; the reason where there is none."""
    return {
        "losses": [
            {
                "node": loss.node,
                "changed": loss.changed,
                "non_local": loss.non_local,
                "without_replica": loss.without_replica,
                "moved_bytes": loss.moved_bytes,
                "moved_bytes_at_least": loss.certificate.moved_bytes_at_least,
                "certificate": loss.certificate.to_json(names),
                "repair_seconds": loss.repair_seconds,
                "anew": {"changed": loss.anew_changed, "seconds": loss.anew_seconds},
            }
            for loss in losses.each
        ],
        "losses_reason": losses.reason,
    }


def render(policy: str, losses: Losses) -> Group:
    """For the terminal: a row per lost node."""
    if not losses.each or losses.problem is None:
        return Group(Text(f"{policy}: {losses.reason}."))
    makespan = losses.each[-1].certificate.makespan_s
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("lost", no_wrap=True)
    for title in ("change node", "not local", "bytes", "repaired in", "planned anew", "takes"):
        table.add_column(title, justify="right", no_wrap=True)
    for loss in losses.each:
        table.add_row(
            loss.node,
            format_count(loss.changed),
            format_count(loss.non_local),
            format_bytes(loss.moved_bytes),
            _milliseconds(loss.repair_seconds),
            format_count(loss.anew_changed),
            _milliseconds(loss.anew_seconds),
        )
    several = "one after the other, " if len(losses.each) > 1 else ""
    title = f"{policy}: shards that change node when nodes are lost, {several}within {format_seconds(makespan)}"
    parts: list[RenderableType] = [Text(title, style="bold"), table]
    last = losses.each[-1].certificate
    if last.non_local_at_least:
        parts.append(Text(f"  {proof(losses.problem, last, 5, format_seconds(makespan))}"))
    else:
        parts.append(Text("  Every shard is local again."))
    if unheld := losses.each[-1].without_replica:
        parts.append(
            Text(f"  {format_count(unheld)} shards have no replica on a node that is up: nobody can read them.")
        )
    return Group(*parts)


def _milliseconds(seconds: float) -> str:
    return f"{format_count(1e3 * seconds) if seconds >= 0.01 else f'{1e3 * seconds:.1f}'} ms"
