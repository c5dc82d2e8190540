"""The policies that place shards on nodes: pure functions (problem, T, seed) -> Assigned. `registry` makes plans of them.

T is the makespan in seconds within which every node keeps to its capacity; None leaves it to the policy. All of them can be
compared: same problem, same T, one checker (`vet`), one certificate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise
from types import MappingProxyType
from typing import TypeAlias

import numpy as np

from datalocal.errors import PlacementError
from datalocal.placement import flow
from datalocal.placement import quincy as tiers
from datalocal.placement.certificate import Certificate, certify
from datalocal.placement.energy import energy
from datalocal.placement.names import look_up
from datalocal.placement.online import placing_by
from datalocal.placement.problem import Assigned, Ints, Nodes, Problem, Reason, assigned
from datalocal.placement.rules import RULES
from datalocal.placement.waves import NOWHERE

Placing: TypeAlias = Callable[[Problem, float | None, int], Assigned]


def random(problem: Problem, makespan_s: float | None = None, seed: int = 0) -> Assigned:
    """Every shard on a node drawn without a look at replicas, in proportion to what nodes can do within T."""
    makespan_s, capacity = _capacity(problem, makespan_s)
    draw = np.random.default_rng(seed)
    capacity //= -(
        -int(capacity.sum()) // 500_000_000
    )  # numpy draws from fewer than 10^9 places; there are enough left
    count = draw.multivariate_hypergeometric(capacity, problem.shards, method="marginals")
    node = draw.permutation(np.repeat(np.arange(problem.nodes), count))
    return assigned(problem, node, policy="random", makespan_s=makespan_s, why=Reason.NOT_ASKED)


def round_robin(problem: Problem, makespan_s: float | None = None, seed: int = 0) -> Assigned:
    """Shard after shard to node after node; a node that is full is left out. `seed` changes nothing."""
    makespan_s, capacity = _capacity(problem, makespan_s)
    rounds = problem.shards // max(int((capacity > 0).sum()), 1) + 1
    while int((fewer := np.minimum(capacity, rounds)).sum()) < problem.shards:
        rounds *= 2
    capacity = fewer
    node = np.repeat(np.arange(problem.nodes), capacity)
    turn = np.arange(len(node)) - np.repeat(np.cumsum(capacity) - capacity, capacity)
    node = node[np.argsort(turn, kind="stable")[: problem.shards]]
    return assigned(problem, node, policy="round-robin", makespan_s=makespan_s, why=Reason.NOT_ASKED)


def hdfs_greedy(problem: Problem, makespan_s: float | None = None, seed: int = 0) -> Assigned:
    """One pass: each shard to its least loaded holder with room; what finds none goes to the nodes that are done first."""
    makespan_s, capacity = _capacity(problem, makespan_s)
    place, load = _greedy(problem, capacity)
    left = np.flatnonzero(place == NOWHERE)
    room = flow.pour(load, capacity, problem.rate, len(left))
    place[left] = np.repeat(np.arange(problem.nodes), room)
    return assigned(problem, place, policy="hdfs-greedy", makespan_s=makespan_s, why=Reason.HOLDERS_FULL)


def rack_aware(problem: Problem, makespan_s: float | None = None, seed: int = 0) -> Assigned:
    """As hdfs-greedy; what finds no holder with room goes to a node in the rack of one, as far as there is room in racks."""
    makespan_s, capacity = _capacity(problem, makespan_s)
    place, load = _greedy(problem, capacity)
    left = np.flatnonzero(place == NOWHERE)
    place[left] = flow.near(problem, left, flow.pour(load, capacity, problem.rate, len(left)))
    return assigned(problem, place, policy="rack-aware", makespan_s=makespan_s, why=Reason.HOLDERS_FULL)


def optimal_bytes(problem: Problem, makespan_s: float | None = None, seed: int = 0) -> Assigned:
    """As many local shards as can be within T, loads as even as can be among those. None: fewest bytes first, then T."""
    return certified_optimal_bytes(problem, makespan_s)[0]


def certified_optimal_bytes(problem: Problem, makespan_s: float | None = None) -> tuple[Assigned, Certificate]:
    """`optimal-bytes` and, from the same flow, the certificate that holds for every policy within that T."""
    if makespan_s is None:
        problem.least_makespan()  # refuses a cluster in which nobody works
        capacity = flow.unlimited(problem)
    else:
        capacity = problem.require(makespan_s)
    matching = flow.match(problem, capacity)
    answer = flow.finish(problem, matching, policy="optimal-bytes", makespan_s=makespan_s)
    if makespan_s is None:
        # The cut was found without a limit of time; within the T that came out nodes of it may take less, never more.
        return answer, certify(problem, flow.match(problem, problem.capacity(answer.makespan_s)), answer.makespan_s)
    return answer, certify(problem, matching, makespan_s)


def optimal_makespan(
    problem: Problem, makespan_s: float | None = None, seed: int = 0, *, epsilon: float = 0.0
) -> Assigned:
    """The shortest makespan times (1 + epsilon), at most T, and within it as many local shards as can be."""
    if makespan_s is not None:
        problem.require(makespan_s)
    shortest = problem.least_makespan() * (1 + epsilon)
    makespan_s = shortest if makespan_s is None else min(shortest, makespan_s)
    matching = flow.match(problem, problem.require(makespan_s))
    return flow.finish(problem, matching, policy="optimal-makespan", makespan_s=makespan_s)


def quincy(problem: Problem, makespan_s: float | None = None, seed: int = 0) -> Assigned:
    """The least cost with 0 for local, 1 for rack-local and 4 for off-rack shards (Quincy's graph)."""
    return tiers.quincy(problem, makespan_s).answer


FAMILY: Mapping[str, Placing] = MappingProxyType(
    {
        "random": random,
        "round-robin": round_robin,
        "hdfs-greedy": hdfs_greedy,
        "rack-aware": rack_aware,
        "quincy": quincy,
        "optimal-bytes": optimal_bytes,
        "optimal-makespan": optimal_makespan,
        "energy": energy,
        **{name: placing_by(name, rule()) for name, rule in RULES.items()},
    }
)


NEED_A_JOB = frozenset({"data-local", "reduce-then-ship", "central-nas", "central-cached", "central-staged", "san"})


def placing(name: str) -> Placing:
    """The policy called `name`. Raises PlacementError with the names that are near, also for one that needs a real job."""
    if name in NEED_A_JOB:
        raise PlacementError(
            f"{name} is about the stages of a job, and there is none to place here",
            f"see it with `plan` or `submit`; policies here: {', '.join(FAMILY)}",
        )
    return look_up(name, FAMILY)


def _capacity(problem: Problem, makespan_s: float | None) -> tuple[float, Ints]:
    makespan_s = problem.least_makespan() if makespan_s is None else makespan_s
    return makespan_s, problem.require(makespan_s)


def _greedy(problem: Problem, capacity: Ints) -> tuple[Nodes, Ints]:
    """A plain loop: numpy is no faster here, as every choice depends on the one before it."""
    room = capacity.tolist()
    unit = (1.0 / np.maximum(problem.rate, 1e-300)).tolist()
    done = [0.0] * problem.nodes
    holders = problem.replica_nodes.tolist()
    place = [NOWHERE] * problem.shards
    for shard, (start, end) in enumerate(pairwise(problem.replica_offsets.tolist())):
        best, earliest = NOWHERE, float("inf")
        for node in holders[start:end]:
            if room[node] and done[node] < earliest:
                best, earliest = node, done[node]
        if best != NOWHERE:
            place[shard] = best
            room[best] -= 1
            done[best] += unit[best]
    return np.array(place, dtype=np.int32), capacity - np.array(room, dtype=np.int64)
