"""From row masks and a gang to the epochs still to do, also after a rollback or on another gang. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from datalocal.catalog.model import Catalog
from datalocal.placement.gang import EpochPlan, RankSlot, plan_epoch
from datalocal.placement.model import Assignment

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
    """Digest of the full-epoch plan that the checkpoint's gang followed, empty if it followed another plan."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Epoch:
    """One epoch still to do: its plan, the rows it chooses from, and where in the whole epoch it stands."""

    epoch: int
    plan: EpochPlan
    masks: Mapping[str, Mask]
    start_step: int = 0
    first_step: int = 0

    @property
    def last_step(self) -> int:
        """The number of steps of the whole epoch, as checkpoints count them."""
        return self.first_step + self.plan.steps


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
) -> list[Epoch]:
    """The epochs still to do, in order.

    After a rollback the same gang goes on within its own plan, so that it sees the very order of an uninterrupted run;
    another gang divides what is left of the epoch anew. Raises PlacementError (from `plan_epoch`).
    """

    def planned(chosen: Mapping[str, Mask]) -> EpochPlan:
        return plan_epoch(assignments, selected_rows(catalog, chosen), slots, batch)

    first = 0 if progress is None else progress.epoch + (1 if progress.epoch_done else 0)
    if first >= epochs:
        return []
    whole = planned(masks)
    works = [Epoch(epoch=epoch, plan=whole, masks=masks) for epoch in range(first, epochs)]
    if progress is not None and not progress.epoch_done and progress.step > 0:
        if progress.gang == digest(whole, masks):
            works[0] = Epoch(epoch=first, plan=whole, masks=masks, start_step=progress.step)
        else:
            left = {key: mask & ~progress.used.get(key, np.zeros_like(mask)) for key, mask in masks.items()}
            works[0] = Epoch(epoch=first, plan=planned(left), masks=left, first_step=progress.step)
    return works


def slots_of(nodes: Sequence[str], ranks_on_node: Mapping[str, int]) -> tuple[RankSlot, ...]:
    """The ranks of a gang: numbered node by node in sorted order."""
    places = [(node, local) for node in sorted(nodes) for local in range(ranks_on_node[node])]
    return tuple(RankSlot(rank=rank, node=node, local_rank=local) for rank, (node, local) in enumerate(places))
