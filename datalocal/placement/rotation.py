"""Another division of the shards in every epoch, without moving a byte: each time another replica is the one that is read. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TypeAlias

import numpy as np

from datalocal.placement.model import Assignment

Draw: TypeAlias = "Callable[[Sequence[Assignment], Mapping[str, int], int], Sequence[Assignment]]"
"""(assignments, selected rows by shard, epoch) -> the assignments of that epoch."""


def keep(assignments: Sequence[Assignment], rows: Mapping[str, int], epoch: int) -> Sequence[Assignment]:
    """The same division in every epoch (`shuffle: local`)."""
    return assignments


def rotation(seed: int) -> Draw:
    """`shuffle: rotate`: every epoch the shards go, in an order drawn anew, each to the holder with the fewest rows so far.

    Only nodes that train already, and that hold a replica, get a shard; one that no trainer holds stays where it was. With r
    replicas on equal nodes about 1 - 1/r of the shards change their node from one epoch to the next. What imbalance is left,
    at most about a shard per node, `plan_epoch` evens out between holders.
    """

    def draw(assignments: Sequence[Assignment], rows: Mapping[str, int], epoch: int) -> Sequence[Assignment]:
        numbers = np.random.default_rng([seed, 0x526F, epoch])
        trainers = {assignment.node for assignment in assignments}
        load: Counter[str] = Counter()
        found = list(assignments)
        order = sorted(range(len(found)), key=lambda place: found[place].shard)
        order = [order[place] for place in numbers.permutation(len(order)).tolist()]
        for place, tie in zip(order, numbers.integers(1 << 30, size=len(order)).tolist(), strict=True):
            was = found[place]
            holders = sorted(trainers.intersection(was.sources)) if was.local else [was.node]
            turn = tie % len(holders)
            node = min((*holders[turn:], *holders[:turn]), key=load.__getitem__)
            load[node] += rows.get(was.shard, 0)
            if node != was.node:
                others = tuple(name for name in was.sources if name != node)
                found[place] = replace(was, node=node, sources=(node, *others))
        return found

    return draw
