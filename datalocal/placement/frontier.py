"""Bytes against makespan: what has to move, for ever more time, and what that is proved by. Pure.

What has to move is a step of the makespan: it falls only where some node finishes a shard more. A point therefore lies at the
shortest T with its capacities, and of two T with the same capacities only one is a point.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from datalocal.placement.certificate import certify
from datalocal.placement.flow import finishing, least_local_makespan, match
from datalocal.placement.problem import Problem
from datalocal.placement.waves import NOWHERE, Index


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """Within `makespan_s` exactly `non_local` shards have to move."""

    makespan_s: float
    non_local: int
    moved_bytes: int
    """What `optimal-bytes` moves."""
    moved_bytes_at_least: int
    """What no placement moves less than; the same, but where many sizes of shards are told apart by classes."""


def frontier(problem: Problem, points: int = 8, step: Callable[[], object] = lambda: None) -> tuple[Point, ...]:
    """At most `points` (2 or more), from the shortest T that does the work to the shortest that moves the fewest bytes.

    No figure rises from a point to the next. `step` is called `points` + 1 times at most. Raises PlacementError where nobody works.
    """
    index = Index.of(problem.replica_offsets, problem.replica_nodes, problem.nodes)
    first, last = problem.least_makespan(), least_local_makespan(problem, index)
    step()
    between = [finishing(problem, problem.capacity(T)) for T in np.linspace(first, last, points)[1:-1].tolist()]
    before = None
    found: list[Point] = []
    for makespan_s in sorted({first, last, *(T for T in between if first < T < last)}):
        capacity = problem.capacity(makespan_s)
        if before is not None and (capacity == before).all():
            continue
        before, matching = capacity, match(problem, capacity, index)
        moved = int(problem.shard_bytes[matching.place == NOWHERE].sum())
        found.append(
            Point(
                makespan_s=makespan_s,
                non_local=matching.non_local,
                moved_bytes=min([moved, *(each.moved_bytes for each in found[-1:])]),  # more time forbids nothing
                moved_bytes_at_least=certify(problem, matching, makespan_s).moved_bytes_at_least,
            )
        )
        step()
    # What cannot be had in more time cannot be had in less.
    bounds = np.maximum.accumulate([each.moved_bytes_at_least for each in reversed(found)])[::-1].tolist()
    return tuple(replace(each, moved_bytes_at_least=bound) for each, bound in zip(found, bounds, strict=True))
