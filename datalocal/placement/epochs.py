"""From row masks and a gang to the epochs still to do, also after a rollback or on another gang. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from datalocal.catalog.model import Catalog
from datalocal.placement.division import able_ranks, plan_epoch
from datalocal.placement.gang import EpochPlan, RankSlot
from datalocal.placement.model import Assignment
from datalocal.placement.quota import Mixes, Quota, expected_labels, mean_distance, quota_of
from datalocal.placement.shuffles import LOCAL, Shuffle

Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far the surviving line of a stage has come: `step` steps of `epoch` are in a complete checkpoint."""

    epoch: int
    step: int
    epoch_done: bool
    used: Mapping[str, Mask]
    """Rows of `epoch` that the surviving line has used, by shard key; what is missing was not touched."""
    gang: str
    """Identity of the schedule that the checkpoint's gang followed, empty if it followed what was left of another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """One epoch still to do: its plan, the rows it chooses from, and where in the whole epoch it stands."""

    epoch: int
    plan: EpochPlan
    masks: Mapping[str, Mask]
    start_step: int = 0
    first_step: int = 0
    quota: Quota | None = None
    """What a class quota changed in the division; None: none was asked for."""
    row_by_row: bool = False
    """Whether segments count the rows of a row group in an order drawn for the epoch (`order.dealt`), not in file order."""

    @property
    def last_step(self) -> int:
        """The number of steps of the whole epoch, as checkpoints count them."""
        return self.first_step + self.plan.steps


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """What a gang still has to do, and what tells it from any other gang."""

    epochs: list[Epoch]
    gang: str
    """The same identity means the same samples in the same order on the same ranks, in every whole epoch."""


def digest(plan: EpochPlan, masks: Mapping[str, Mask]) -> str:
    """Identity of a plan with its masks: the same digest means the same samples in the same order."""
    state = hashlib.sha256(repr(plan).encode())
    for key in sorted(masks):
        state.update(key.encode() + b"\0" + np.packbits(masks[key]).tobytes())
    return state.hexdigest()


def selected_rows(catalog: Catalog, masks: Mapping[str, Mask]) -> dict[str, list[int]]:
    """Selected rows of each row group, by shard key."""
    counts: dict[str, list[int]] = {}
    for key, mask in masks.items():
        edges = np.concatenate(([0], np.cumsum(catalog.groups(catalog.index(key)))))
        running = np.concatenate(([0], np.cumsum(mask, dtype=np.int64)))
        counts[key] = np.diff(running[edges]).tolist()
    return counts


def plan_epochs(
    catalog: Catalog,
    assignments: Sequence[Assignment],
    masks: Mapping[str, Mask],
    slots: Sequence[RankSlot],
    *,
    batch: int,
    epochs: int,
    progress: Progress | None = None,
    shuffle: Shuffle = LOCAL,
    mixes: Mixes | None = None,
    together: bool = True,
) -> Schedule:
    """The epochs still to do, in order, each with the division that `shuffle` gives it, with `mixes` under a class quota.

    After a rollback the same gang goes on within its own plan, so that it sees the very order of an uninterrupted run;
    another gang divides what is left of the epoch anew. `together`: see `plan_epoch`. Raises PlacementError (from `plan_epoch`).
    """

    homes = {assignment.shard: assignment for assignment in assignments}

    def planned(
        selected: Mapping[str, Sequence[int]], rows: Mapping[str, int], epoch: int
    ) -> tuple[EpochPlan, Quota | None]:
        drawn = shuffle.draw(assignments, rows, epoch)
        plan, quota = plan_epoch(drawn, selected, slots, batch, together=together), None
        if mixes is not None:
            plan, quota = _under_quota(plan, drawn, selected, slots, batch, mixes)
        return shuffle.deal(plan, homes, selected, epoch), quota

    first = 0 if progress is None else progress.epoch + (1 if progress.epoch_done else 0)
    selected, rows = _counts(catalog, masks)
    beginning = planned(selected, rows, 0)
    gang = digest(beginning[0], masks)
    if first >= epochs:
        return Schedule(epochs=[], gang=gang)
    plans = [
        beginning if shuffle.every_epoch_alike or not epoch else planned(selected, rows, epoch)
        for epoch in range(first, epochs)
    ]
    works = [
        Epoch(epoch=epoch, plan=plan, masks=masks, quota=quota, row_by_row=shuffle.row_by_row)
        for epoch, (plan, quota) in enumerate(plans, start=first)
    ]
    if progress is not None and not progress.epoch_done and progress.step > 0:
        if progress.gang == gang:
            works[0] = replace(works[0], start_step=progress.step)
        else:
            left = {key: mask & ~progress.used.get(key, np.zeros_like(mask)) for key, mask in masks.items()}
            plan, quota = planned(*_counts(catalog, left), first)
            works[0] = replace(works[0], plan=plan, quota=quota, masks=left, first_step=progress.step)
    return Schedule(epochs=works, gang=gang)


def _under_quota(
    before: EpochPlan,
    drawn: Sequence[Assignment],
    selected: Mapping[str, Sequence[int]],
    slots: Sequence[RankSlot],
    batch: int,
    mixes: Mixes,
) -> tuple[EpochPlan, Quota]:
    """The division with the quota where it is nearer and reads no more over the network, else as it was without."""
    plan = plan_epoch(drawn, selected, slots, batch, mixes)
    nearer = mean_distance(expected_labels(plan, mixes)) < mean_distance(expected_labels(before, mixes))
    if not nearer or plan.away > before.away:
        plan = before
    return plan, quota_of(before, plan, able_ranks(drawn, sorted(slots, key=lambda slot: slot.rank)), mixes)


def _counts(catalog: Catalog, masks: Mapping[str, Mask]) -> tuple[dict[str, list[int]], dict[str, int]]:
    """Selected rows of each row group, and of each shard."""
    selected = selected_rows(catalog, masks)
    return selected, {shard: sum(groups) for shard, groups in selected.items()}


def slots_of(nodes: Sequence[str], ranks_on_node: Mapping[str, int]) -> tuple[RankSlot, ...]:
    """The ranks of a gang: numbered node by node in sorted order."""
    places = [(node, local) for node in sorted(nodes) for local in range(ranks_on_node[node])]
    return tuple(RankSlot(rank=rank, node=node, local_rank=local) for rank, (node, local) in enumerate(places))
