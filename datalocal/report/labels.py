"""What `plan` says of the labels of ranks, as figures and as a sentence. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datalocal.catalog.model import Catalog
from datalocal.estimate.bytes import MOST_SHARDS_FOR_LABELS, Estimate
from datalocal.spec.job import JobSpec
from datalocal.units import format_count

_LITTLE = 0.1
"""A mean distance below which nobody is sent to look for a remedy."""


def label_distance(found: Estimate, job: JobSpec, catalog: Catalog) -> dict[str, Any]:
    """{label_distance, label_distance_reason}: null with a reason where there is nothing to tell."""
    reason = ""
    if job.train is None:
        reason = "the job does not train"
    elif catalog.label_counts is None or not catalog.labels:
        reason = "the catalog counts no labels"
    elif found.labels is None:
        reason = (
            f"which rows train is not known beforehand, or, beyond {format_count(MOST_SHARDS_FOR_LABELS)} shards, how large "
            "what preprocess writes will be"
        )
    elif len(found.labels.nodes) < 2:
        reason = "a single rank has all labels"
    told = (
        found.labels.to_json(job.train) if not reason and found.labels is not None and job.train is not None else None
    )
    return {"label_distance": told, "label_distance_reason": reason}


def in_words(figures: Mapping[str, Any]) -> str:
    """In a sentence, how far a rank's labels are from those of all ranks (0 none, 1 all), and what the job does about it."""
    before = (
        f"a rank's labels are {figures['before_mean']:.2f} from those of all {len(figures['by_rank'])} ranks on average, "
        f"{figures['before_max']:.2f} at most"
    )
    shuffle = figures["shuffle"] + (f" {figures['exchange']:g}" if figures["exchange"] is not None else "")
    means = [] if figures["shuffle"] == "local" else [f"`shuffle: {shuffle}`"]
    means += ["the class quota"] if figures["class_quota"] else []
    if not means:
        return before + ("; `train.class_quota` may bring them nearer" if figures["before_mean"] > _LITTLE else "")
    after = (
        f"{before} as the shards lie; with {' and '.join(means)} {figures['mean']:.2f}, {figures['max']:.2f} at most"
    )
    if figures["at_least"] is None:
        return after
    return f"{after}, where no choice among these replicas is below {figures['at_least']:.2f}"
