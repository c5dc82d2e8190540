"""Which rank of the plan a process is."""

from __future__ import annotations

from datalocal.placement.gang import RankSlot
from datalocal.tasks.model import TrainTask


def slots(task: TrainTask) -> tuple[RankSlot, ...]:
    """The gang's slots by rank, from the plan of the first epoch (or of validation)."""
    works = [*task.epochs, *([task.validation] if task.validation else [])]
    return tuple(share.slot for share in works[0].plan.shares)


def plan_ranks(task: TrainTask) -> dict[int, int]:
    """Local rank -> rank, for this node's ranks."""
    return {slot.local_rank: slot.rank for slot in slots(task) if slot.node == task.node}
