"""How a train stage was shuffled: what changed from epoch to epoch, and how far a rank's labels were from the whole's. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from datalocal.placement.mixing import label_distance
from datalocal.units import format_ratio, format_share

Event = Mapping[str, Any]


def mixing_figures(own: Sequence[Event]) -> dict[str, Any] | None:
    """Figures of a stage's own events, by epoch and over all of them; None where no launch told any."""
    launches = [event for event in own if event["type"] == "mixing"]
    if not launches:
        return None
    planned = {row["epoch"]: row for event in launches for row in event["epochs"]}
    labels = _labels(own)
    epochs = [
        {
            "epoch": number,
            **{key: planned.get(number, {}).get(key) for key in ("samples", "rows_read", "exchanged")},
            **{key: planned.get(number, {}).get(key) for key in ("changed_share", "mixture_entropy")},
            **_distances(labels.get(number, {})),
        }
        for number in sorted(planned.keys() | labels.keys())
    ]
    samples = sum(row["samples"] for row in epochs if row["samples"])
    return {
        "shuffle": launches[-1]["shuffle"],
        "exchange": launches[-1]["exchange"],
        "class_quota": _quota(launches),
        "ranks": max((event["world"] for event in own if event["type"] == "launch"), default=0),
        "read_amplification": sum(row["rows_read"] for row in epochs if row["samples"]) / samples if samples else None,
        "changed_share": _mean(epochs, "changed_share"),
        "mixture_entropy": _mean(epochs, "mixture_entropy"),
        "label_distance_mean": _mean(epochs, "label_distance_mean"),
        "label_distance_max": max(
            (row["label_distance_max"] for row in epochs if row["label_distance_max"] is not None), default=None
        ),
        "epochs": epochs,
    }


def _quota(launches: Sequence[Event]) -> dict[str, float] | None:
    """What a class quota was expected to change, over all whole epochs; None where none was asked for."""
    planned = {number: row for event in launches for number, row in event.get("class_quota", {}).items()}
    if not planned:
        return None
    rows = list(planned.values())
    means = {key: fmean(row[key] for row in rows) for key in ("before_mean", "mean", "at_least")}
    return means | {key: max(row[key] for row in rows) for key in ("before_max", "max")}


def _labels(own: Sequence[Event]) -> dict[int, dict[int, list[int]]]:
    """By epoch and rank: how often the rank used each class, of the newest launch that ended the epoch."""
    found: dict[int, dict[int, dict[int, list[int]]]] = {}
    for event in own:
        if event["type"] == "labels":
            found.setdefault(event["epoch"], {}).setdefault(event["launch"], {})[event["rank"]] = event["counts"]
    return {epoch: by_launch[max(by_launch)] for epoch, by_launch in found.items()}


def _distances(counts: Mapping[int, Sequence[int]]) -> dict[str, Any]:
    """Of each rank's labels from those of all ranks together; the mean is weighted by samples."""
    used = {rank: sum(each) for rank, each in sorted(counts.items()) if sum(each)}
    if not used:
        return {"label_distance_mean": None, "label_distance_max": None, "label_distance_by_rank": {}}
    whole = np.sum([counts[rank] for rank in used], axis=0)
    by_rank = {str(rank): label_distance(counts[rank], whole) for rank in used}
    total = sum(used.values())
    return {
        "label_distance_mean": sum(by_rank[str(rank)] * count for rank, count in used.items()) / total,
        "label_distance_max": max(by_rank.values()),
        "label_distance_by_rank": by_rank,
    }


def _mean(epochs: Sequence[Mapping[str, Any]], key: str) -> float | None:
    known = [row[key] for row in epochs if row[key] is not None]
    return fmean(known) if known else None


def in_words(figures: Mapping[str, Any]) -> str:
    """The figures of a stage in a sentence; what is not known is left out."""
    name = figures["shuffle"] + (f" {figures['exchange']:g}" if figures["exchange"] is not None else "")
    told = []
    if figures["label_distance_mean"] is not None:
        told.append(
            f"a rank's labels are {figures['label_distance_mean']:.2f} from those of all ranks on average, "
            f"{figures['label_distance_max']:.2f} at most"
        )
    quota = figures.get("class_quota")
    if quota is not None:
        told.append(
            f"the class quota was to bring them from {quota['before_mean']:.2f} to {quota['mean']:.2f}, where no choice among "
            f"these replicas is below {quota['at_least']:.2f}"
        )
    if figures["changed_share"] is not None:
        told.append(
            f"{format_share(figures['changed_share'])} of the samples change rank from epoch to epoch "
            f"(mixture {figures['mixture_entropy']:.2f} of 1)"
        )
    if figures["read_amplification"] is not None and figures["read_amplification"] > 1.005:
        told.append(f"{format_ratio(figures['read_amplification'])} rows are read for each that is used")
    return f"{name}: {'; '.join(told)}" if told else name
