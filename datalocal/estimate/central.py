"""The central ways of working as placements of arrays: on compute nodes, from an array, or reduced first and shipped. Pure."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from datalocal.errors import PlacementError
from datalocal.placement import flow
from datalocal.placement.problem import ROLES, Assigned, Ints, Mask, Problem, Reason, assigned

CENTRAL = ("central-nas", "central-cached", "central-staged", "san", "reduce-then-ship")
_COMPUTE, _ARRAY = ROLES.index("compute"), ROLES.index("array")


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


def not_on_array(problem: Problem) -> Mask:
    """[N] which shards no storage array holds."""
    there = ((problem.role == _ARRAY) & problem.alive)[problem.replica_nodes]
    return np.asarray(np.bincount(problem.owner[there], minlength=problem.shards) == 0)


def on_array(problem: Problem) -> Problem:
    """The same problem with all data on the storage arrays.

    Of a shard that lies on an array already only those replicas count; the others go to the arrays in turn. Raises
    PlacementError where no array is up.
    """
    arrays = np.flatnonzero((problem.role == _ARRAY) & problem.alive)
    if not arrays.size:
        raise PlacementError(
            f"san reads from a storage array, and none of the {problem.nodes} nodes is one that is up",
            "give the nodes table a row with the role `array`, or take a preset that has some",
        )
    there = np.isin(problem.replica_nodes, arrays)
    copied = np.flatnonzero(not_on_array(problem))
    shard = np.concatenate((problem.owner[there], copied))
    node = np.concatenate((problem.replica_nodes[there], arrays[np.arange(copied.size) % arrays.size]))
    offsets = np.concatenate(([0], np.cumsum(np.bincount(shard, minlength=problem.shards))))
    replicas = node[np.argsort(shard, kind="stable")].astype(np.int32)
    return replace(problem, replica_offsets=offsets.astype(np.int64), replica_nodes=replicas)


def spread(problem: Problem) -> Ints:
    """[N] a node for each shard, so that the last is done as early as possible."""
    capacity = problem.capacity(problem.least_makespan())
    count = flow.pour(np.zeros(problem.nodes, dtype=np.int64), capacity, problem.rate, problem.shards)
    return np.repeat(np.arange(problem.nodes), count)
