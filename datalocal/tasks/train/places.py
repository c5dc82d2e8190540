"""Which rank of the plan a process is, and its share of the node."""

from __future__ import annotations

from datalocal.placement.gang import RankShare, RankSlot
from datalocal.tasks.model import EpochWork, NodeContext, TrainTask


def slots(task: TrainTask) -> tuple[RankSlot, ...]:
    """The gang's slots by rank, from the plan of the first epoch (or of validation)."""
    works = [*task.epochs, *([task.validation] if task.validation else [])]
    return tuple(share.slot for share in works[0].plan.shares)


def plan_ranks(task: TrainTask) -> dict[int, int]:
    """Local rank -> rank, for this node's ranks."""
    return {slot.local_rank: slot.rank for slot in slots(task) if slot.node == task.node}


def threads_per_rank(task: TrainTask, ctx: NodeContext) -> int:
    """Threads that a rank computes with: its share of the node's cores."""
    return max(1, ctx.cores // task.ranks_on_node)


def own_share(work: EpochWork, node: str, local_rank: int) -> RankShare:
    """What this rank uses in an epoch. Raises ValueError when the plan has no such rank."""
    for share in work.plan.shares:
        if share.slot.node == node and share.slot.local_rank == local_rank:
            return share
    raise ValueError(f"the plan of epoch {work.epoch} has no rank {local_rank} on {node}")
