"""How far the labels of each rank will be from those of all ranks: as the shards lie, and as the job shuffles them. Pure.

Expected from what the catalog counts by shard, as `quota` does: exact where a shard has one label. The report tells the same
of the labels that ranks saw.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from datalocal.catalog.model import Catalog
from datalocal.placement.epochs import Epoch, Mask, plan_epochs, slots_of
from datalocal.placement.gang import EpochPlan
from datalocal.placement.model import StagePlan
from datalocal.placement.quota import Mixes, distances, expected_labels, label_mixes, mean_distance
from datalocal.spec.job import Train


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelDistance:
    """Label distances of the ranks of one train stage, between 0 and 1; means over ranks are weighted by samples."""

    nodes: tuple[str, ...]
    """By rank: one on each node."""
    before_mean: float
    """Each shard at its rank, without the shuffle and without a quota."""
    before_max: float
    before_by_rank: tuple[float, ...]
    mean: float
    """As planned, over all epochs."""
    max: float
    by_rank: tuple[float, ...]
    at_least: float | None
    """Under a class quota: no choice among the same replicas has a lower mean."""

    def to_json(self, train: Train) -> dict[str, Any]:
        """With the shuffle and the quota that the figures are about."""
        return {
            "shuffle": train.shuffle,
            "exchange": train.exchange,
            "class_quota": train.class_quota,
            "before_mean": self.before_mean,
            "before_max": self.before_max,
            "mean": self.mean,
            "max": self.max,
            "at_least": self.at_least,
            "by_rank": [
                {"rank": rank, "node": node, "before": before, "planned": planned}
                for rank, (node, before, planned) in enumerate(
                    zip(self.nodes, self.before_by_rank, self.by_rank, strict=True)
                )
            ],
        }


def label_distance_of(
    epochs: Sequence[Epoch], stage: StagePlan, train: Train, catalog: Catalog, masks: Mapping[str, Mask]
) -> LabelDistance | None:
    """Of the planned `epochs` (one, where all are alike); `masks` [rows] by shard key. None where nobody knows the labels.

    As the shards lie is divided once more where the job shuffles; it costs as much as planning an epoch.
    """
    if catalog.label_counts is None or not catalog.labels or not epochs:
        return None
    mixes = label_mixes(catalog)
    planned = [_by_rank(epoch.plan, mixes) for epoch in epochs]
    if train.shuffle == "local" and not train.class_quota:
        before = planned[0]
    else:
        slots = slots_of(stage.nodes, dict.fromkeys(stage.nodes, 1))
        plain = plan_epochs(catalog, stage.assignments, masks, slots, batch=train.batch, epochs=1)
        before = _by_rank(plain.epochs[0].plan, mixes)
    by_rank = np.mean([each for each, _ in planned], axis=0)
    bounds = [epoch.quota.at_least for epoch in epochs if epoch.quota is not None]
    return LabelDistance(
        nodes=stage.nodes,
        before_mean=before[1],
        before_max=float(before[0].max()),
        before_by_rank=tuple(before[0].tolist()),
        mean=float(np.mean([mean for _, mean in planned])),
        max=float(max(each.max() for each, _ in planned)),
        by_rank=tuple(by_rank.tolist()),
        at_least=float(np.mean(bounds)) if bounds else None,
    )


def _by_rank(plan: EpochPlan, mixes: Mixes) -> tuple[Any, float]:
    """([ranks] distances, their mean)"""
    table = expected_labels(plan, mixes)
    return distances(table), mean_distance(table)
