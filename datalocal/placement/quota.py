"""Class quotas: of the replicas that there are, those are read that bring every rank's labels nearest to those of all. Pure.

Row groups go to the ranks on the nodes that hold their shard, one by one, each to where the sum of squares

    sum over ranks r and labels c of (n_rc - N_c / ranks)^2  +  LOAD_WEIGHT x sum over r of (n_r - N / ranks)^2

falls the most, round after round until none helps: a local optimum. n_rc are the rows of label c that rank r uses. Loads need
not come out even, `division` sees to that afterwards; with full weight they would stop moves that an exchange could make. The
catalog counts labels by shard, so every row group of a shard is taken for a sample of it: exact where a shard has one label.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from datalocal.catalog.model import Catalog
from datalocal.errors import PlacementError
from datalocal.placement.gang import EpochPlan
from datalocal.placement.mixing import label_distance

Shares = npt.NDArray[np.float64]
Mixes = Mapping[str, Shares]
"""By shard key: the share [L] of each label in its rows."""

LOAD_WEIGHT = 0.1
"""Between 0.03 and 0.3 hardly anything changes; at 0 dividing evenly undoes more than it need, at 1 half as much is gained."""
ROUNDS = 10
"""After so many the rest is left as it is: 30 gain next to nothing more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Quota:
    """How far ranks' labels are from those of all ranks, expected from the catalog; means are weighted by samples."""

    before_mean: float
    """As the epoch would be divided without a quota."""
    before_max: float
    mean: float
    """As it is divided."""
    max: float
    at_least: float
    """No choice among the same replicas has a lower mean, with as many samples on each rank."""


def label_mixes(catalog: Catalog) -> Mixes:
    """Raises PlacementError where the catalog does not know the labels."""
    if catalog.label_counts is None:
        raise PlacementError(
            f"`train.class_quota` needs the labels of {catalog.dataset}, and the catalog counts none",
            "name the label column in `columns.label`, or leave `class_quota` out",
        )
    rows = catalog.label_counts.sum(axis=1, keepdims=True)
    mixes = catalog.label_counts / np.maximum(rows, 1)
    return dict(zip(catalog.shards, mixes, strict=True))


def spread(
    groups: Sequence[tuple[str, int]], at: Sequence[int], able: Mapping[str, Sequence[int]], mixes: Mixes, ranks: int
) -> list[int]:
    """The rank of each row group. `groups`: (shard key, rows); `at`: their ranks now; `able`: by shard, ranks that hold it.

    Never a higher sum of squares than now. Deterministic.
    """
    # The load is one more label, that every row has a little of.
    parts = {key: np.append(mixes[key], LOAD_WEIGHT**0.5) for key in able}
    columns = {key: np.flatnonzero(part) for key, part in parts.items()}
    parts = {key: part[columns[key]] for key, part in parts.items()}
    choices = {key: np.array(ranks_of, dtype=np.int64) for key, ranks_of in able.items()}
    found = list(at)
    table = np.zeros((ranks, 1 + max(len(mix) for mix in mixes.values())))
    for (key, rows), rank in zip(groups, found, strict=True):
        table[rank, columns[key]] += rows * parts[key]
    table -= table.mean(axis=0)
    movable = [place for place, (key, rows) in enumerate(groups) if rows and len(choices[key]) > 1]
    for _ in range(ROUNDS):
        moved = False
        for place in movable:
            (key, rows), here = groups[place], found[place]
            part = rows * parts[key]
            scores = table[choices[key][:, None], columns[key]] @ part
            best = int(np.argmin(scores))
            there = int(choices[key][best])
            if scores[best] + part @ part < table[here, columns[key]] @ part - 1e-6:
                table[here, columns[key]] -= part
                table[there, columns[key]] += part
                found[place], moved = there, True
        if not moved:
            break
    return found


def expected_labels(plan: EpochPlan, mixes: Mixes) -> Shares:
    """[ranks, L] rows of each label that each rank is expected to use."""
    table = np.zeros((len(plan.shares), max(len(mix) for mix in mixes.values())))
    for rank, share in enumerate(plan.shares):
        for segment in share.segments:
            table[rank] += segment.samples * mixes[segment.shard]
    return table


def mean_distance(table: Shares) -> float:
    """Of [ranks, L] rows: the label distance of a rank from all, weighted by its rows."""
    rows = table.sum(axis=1)
    found = distances(table)
    return float((found * rows).sum() / rows.sum()) if rows.any() else 0.0


def quota_of(before: EpochPlan, plan: EpochPlan, able: Mapping[str, Sequence[int]], mixes: Mixes) -> Quota:
    """What the quota changed. `able`: by shard key, the ranks that could use it without the network."""
    was, now = expected_labels(before, mixes), expected_labels(plan, mixes)
    return Quota(
        before_mean=mean_distance(was),
        before_max=float(distances(was).max(initial=0.0)),
        mean=mean_distance(now),
        max=float(distances(now).max(initial=0.0)),
        at_least=_at_least(plan, now, able, mixes),
    )


def distances(table: Shares) -> Shares:
    """[ranks] label distances of a [ranks, L] table; 0 for a rank without rows."""
    whole = table.sum(axis=0)
    return np.array([label_distance(row, whole) if row.any() else 0.0 for row in table])


def _at_least(plan: EpochPlan, now: Shares, able: Mapping[str, Sequence[int]], mixes: Mixes) -> float:
    """A rank has no more rows of a label than the shards have that it may use; what it lacks of its share is its distance."""
    rows: dict[str, int] = {}
    users = {key: set(ranks) for key, ranks in able.items()}
    for rank, share in enumerate(plan.shares):
        for segment in share.segments:
            rows[segment.shard] = rows.get(segment.shard, 0) + segment.samples
            users[segment.shard].add(rank)
    supply = np.zeros_like(now)
    for key, count in rows.items():
        supply[sorted(users[key])] += count * mixes[key]
    load, total = now.sum(axis=1, keepdims=True), float(now.sum())
    lacking = np.maximum(load * now.sum(axis=0) / total - supply, 0.0) if total else np.zeros(1)
    return float(lacking.sum() / total) if total else 0.0
