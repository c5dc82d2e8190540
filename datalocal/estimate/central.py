"""The central ways of working as placements of arrays: all work on the compute nodes, or reduced first and then shipped. Pure."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from datalocal.errors import PlacementError
from datalocal.placement import flow
from datalocal.placement.problem import ROLES, Assigned, Ints, Problem, Reason, assigned

CENTRAL = ("central-nas", "central-staged", "reduce-then-ship")
_COMPUTE = ROLES.index("compute")


def usual(problem: Problem) -> tuple[str, ...]:
    """The policies to compare where nobody names any: those that have nodes to work on."""
    slots = problem.slots > 0
    beside = ("random", "hdfs-greedy", "optimal-bytes") if (slots & (problem.role != _COMPUTE)).any() else ()
    return (*beside, "central-nas", "central-staged") if (slots & (problem.role == _COMPUTE)).any() else beside


def storage_side(problem: Problem) -> Problem:
    """The same problem with slots on the nodes that are not compute nodes. Raises PlacementError when there are none."""
    storage = np.where(problem.role == _COMPUTE, 0, problem.slots)
    if not storage.any() and problem.slots.any():
        raise PlacementError(
            f"none of the {int((problem.role != _COMPUTE).sum())} storage nodes has a slot: nothing can run beside the data",
            "compare the ways that work on compute nodes: --policies central-nas,central-staged",
        )
    return replace(problem, slots=storage)


def central_side(problem: Problem, policy: str) -> Problem:
    """The same problem with slots on compute nodes alone. Raises PlacementError when there are none."""
    slots = np.where(problem.role == _COMPUTE, problem.slots, 0)
    if not slots.any():
        raise PlacementError(
            f"{policy} works on compute nodes, and none of the {problem.nodes} nodes is one",
            "give the nodes table rows with the role `compute` and slots, or take a preset that has some",
        )
    return replace(problem, slots=slots)


def central(problem: Problem, policy: str) -> Assigned:
    """Shards on the compute nodes, in proportion to what they can do."""
    there = central_side(problem, policy)
    makespan_s = there.least_makespan()
    return assigned(there, spread(there), policy=policy, makespan_s=makespan_s, why=Reason.NOT_ASKED)


def spread(problem: Problem) -> Ints:
    """[N] a node for each shard, so that the last is done as early as possible."""
    capacity = problem.capacity(problem.least_makespan())
    count = flow.pour(np.zeros(problem.nodes, dtype=np.int64), capacity, problem.rate, problem.shards)
    return np.repeat(np.arange(problem.nodes), count)
