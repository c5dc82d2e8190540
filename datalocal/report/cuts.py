"""The cuts of a pipeline for people: the table that `plan` prints, and what it means. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from datalocal.estimate.cuts import CutRow, CutTable
from datalocal.spec.pipeline import RAW
from datalocal.units import format_bytes, format_count

_ORIGINS = {
    "catalog": "sizes of the shards",
    "exact": "shape and type",
    "measured.sample": "some images, encoded",
    "missing": "not known",
}


def render(table: CutTable) -> Group:
    """A row per cut, then the proposal and what has to be known."""
    shown = Table(title="Where the pipeline can be cut", title_justify="left", title_style="bold")
    for column in (
        "cut",
        "a sample",
        "bytes per sample",
        "known from",
        "the data set, once",
        "in every epoch",
        "GFLOP",
    ):
        shown.add_column(column, justify="left" if column in ("cut", "a sample", "known from") else "right")
    for row in table.rows:
        name = Text(f"{row.cut} *" if row.cut == table.chosen else row.cut, style="dim" if row.forbidden else "")
        shown.add_row(
            name,
            "x".join(map(str, row.shape)) or "the image",
            _bytes(row.stored.bytes_per_sample),
            _ORIGINS[row.stored.origin],
            _bytes(table.once_bytes(row)),
            _bytes(table.every_epoch_bytes(row)),
            f"{_giga(table, row):.3g}",
        )
    lines: list[RenderableType] = [Padding(Text(line), (0, 0, 0, 2)) for line in sentences(table)]
    return Group(shown, *lines)


def sentences(table: CutTable) -> list[str]:
    """The proposal, the choice, what is lost or forbidden where, and what is the same at every cut."""
    proposed = table.row(table.proposed)
    share = table.share_of_raw(table.proposed)
    told = [_proposal(proposed, share)]
    if table.chosen != table.proposed:
        told.append(f"The job says `cut: {table.chosen}`.")
    told += [f"{row.cut}: {row.loss}." for row in table.rows if row.loss]
    told += [f"{row.cut} is ruled out: {row.forbidden}." for row in table.rows if row.forbidden]
    told += [f"{row.cut}: {row.stored.reason}." for row in table.rows if row.stored.reason]
    told.append(
        "GFLOP: what the frozen stages compute for all samples, once before the cut and in every epoch after it. What is "
        f"trained is the same at every cut{_gradients(table)}."
    )
    return told


def _proposal(row: CutRow, share: float | None) -> str:
    each = _bytes(row.stored.bytes_per_sample)
    if row.cut == RAW:
        return f"Proposed: cut at `raw`: ship the images as they are, {each} each; no later cut is smaller."
    times = f", {1 / share:.3g} times less than the image as it lies" if share else ""
    return f"Proposed: cut at `{row.cut}`: {each} per sample{times}."


def _gradients(table: CutTable) -> str:
    if table.gradient_bytes is None:
        return ""
    return f": {format_bytes(table.gradient_bytes)} of gradients per step, none of them the frozen stages'"


def _bytes(value: float | None) -> str:
    return "not known" if value is None else format_bytes(value)


def _giga(table: CutTable, row: CutRow) -> float:
    return (row.flops_before + row.flops_after * table.epochs) * table.samples / 1e9


def cut_figures(events: Sequence[Mapping[str, Any]]) -> dict[str, Any] | None:
    """Of an arm with a pipeline: where it was cut, what a sample takes there as predicted and as written, and the weights.

    `frozen` maps each stage to the SHA-256 of its weights, as every node and rank that built it told: one per stage, since a
    node with another one refuses to work. None for an arm without a pipeline.
    """
    cuts = [event for event in events if event["type"] == "cut"]
    if not cuts:
        return None
    table = cuts[-1]["table"]
    at = next(row for row in table["cuts"] if row["cut"] == table["chosen"])
    records = {event["record"]["shard"]: event["record"] for event in events if event["type"] == "task"}
    written = [record for record in records.values() if record["kind"] in ("preprocess", "staging")]
    if any(record["kind"] == "preprocess" for record in written):
        written = [record for record in written if record["kind"] == "preprocess"]
        size, images = sum(r["output_bytes"] for r in written), sum(r["images_out"] for r in written)
    else:
        size, images = sum(r["output_bytes"] for r in written), table["samples"]
    frozen = {name: hash_ for record in written for name, hash_ in record.get("frozen", {}).items()}
    for event in events:
        frozen |= event.get("frozen", {}) if event["type"] == "rank" else {}
    return {
        "cut": table["chosen"],
        "predicted_bytes_per_sample": at["bytes_per_sample"],
        "origin": at["origin"],
        "measured_bytes_per_sample": size / images if size and images else None,
        "frozen": frozen,
    }


def cut_line(figures: Mapping[str, Any]) -> str:
    """Prediction beside measurement in a sentence."""
    measured, predicted = figures["measured_bytes_per_sample"], figures["predicted_bytes_per_sample"]
    text = f"cut at {figures['cut']}: {_bytes(predicted)} per sample predicted"
    if measured is None:
        return f"{text}, nothing was written"
    off = f" ({100 * (predicted / measured - 1):+.2f} %)" if predicted is not None else ""
    return (
        f"{text}, {_bytes(measured)} measured{off}; {format_count(len(figures['frozen']))} frozen stages, equal weights"
    )
