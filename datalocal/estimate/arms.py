"""One policy in `simulate`, from its name to its figures: placed, and run in virtual time. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from datalocal.errors import PlacementError
from datalocal.estimate.bottleneck import Bottleneck, bottleneck
from datalocal.estimate.central import CENTRAL, central, central_side, spread, storage_side
from datalocal.estimate.simulation import Gang, Machines, Simulated, simulate, transfer_seconds
from datalocal.placement.family import placing
from datalocal.placement.model import Tier
from datalocal.placement.problem import Assigned, Nodes, Problem

Moved = dict[tuple[str, Tier], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What is to be done with the shards."""

    epochs: int = 1
    gang: Gang | None = None
    """None: independent tasks."""
    output_share: float | None = None
    """Bytes that a task writes per byte that it reads: what reduce-then-ship ships, and cannot do without."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """One arm, placed and simulated."""

    problem: Problem
    """With the slots of the nodes that this way of working uses."""
    answer: Assigned
    simulated: Simulated
    bound: Bottleneck
    bytes: Moved
    slot_seconds: float
    """Seconds of all slots that are held, whether they work or wait: what different numbers of GPUs are compared by."""
    notes: tuple[str, ...] = ()


def place(problem: Problem, policy: str, makespan_s: float | None, seed: int) -> tuple[Problem, Assigned]:
    """The problem as this way of working sees it, and the policy's answer.

    `makespan_s` None: the shortest that its nodes can keep. Raises PlacementError.
    """
    if policy in CENTRAL and policy != "reduce-then-ship":
        return central_side(problem, policy), central(problem, policy)
    here = storage_side(problem)
    limit = here.least_makespan() if makespan_s is None else makespan_s
    if policy == "reduce-then-ship":
        central_side(problem, policy)
        return here, replace(placing("optimal-bytes")(here, limit, seed), policy=policy)
    return here, placing(policy)(here, limit, seed)


def run(problem: Problem, here: Problem, answer: Assigned, machines: Machines, work: Work) -> Ran:
    """`problem` with all slots, `here` with those of this way of working.

    Raises PlacementError for reduce-then-ship where nobody says what it ships.
    """
    uplink = machines.uplink_bytes_per_second
    bound = bottleneck(
        here,
        answer,
        link_bytes_per_second=machines.link_bytes_per_second,
        uplink_bytes_per_second=uplink,
    )
    if answer.policy == "central-staged":
        return _staged(here, answer, machines, work, bound)
    if answer.policy == "reduce-then-ship":
        return _shipped(problem, here, answer, machines, work, bound)
    simulated = simulate(here, answer, machines, epochs=work.epochs, gang=work.gang)
    moved = {("input", tier): size * work.epochs for tier, size in answer.moved_bytes(here).items()}
    return Ran(
        problem=here,
        answer=answer,
        simulated=simulated,
        bound=bound,
        bytes=moved | _gradients(simulated),
        slot_seconds=simulated.seconds * slots_of(here, answer.node),
    )


def _staged(here: Problem, answer: Assigned, machines: Machines, work: Work, bound: Bottleneck) -> Ran:
    """Copied once, then every epoch from the own disk."""
    none = replace(here, speed=np.full(here.nodes, np.inf))  # copying computes nothing
    copying = simulate(none, answer, machines)
    if machines.disk_bytes_per_second is not None:
        there = np.bincount(answer.node, weights=here.shard_bytes, minlength=here.nodes)
        writing = float((there / machines.disk_bytes_per_second).max(initial=0.0))
        copying = replace(
            copying,
            seconds=max(copying.seconds, writing),
            disk_seconds=max(copying.disk_seconds, writing),
        )
    copied = _copied(here, answer)
    training = simulate(copied, _at_home(answer), machines, epochs=work.epochs, gang=work.gang)
    moved: Moved = {("staging", tier): size for tier, size in answer.moved_bytes(here).items()}
    moved["input", Tier.NODE_LOCAL] = int(here.shard_bytes.sum()) * work.epochs
    together = _after(copying, training)
    return Ran(
        problem=here,
        answer=answer,
        simulated=together,
        bound=bound,
        bytes=moved | _gradients(training),
        slot_seconds=together.seconds * slots_of(here, answer.node),
    )


def _shipped(
    problem: Problem, here: Problem, answer: Assigned, machines: Machines, work: Work, bound: Bottleneck
) -> Ran:
    """Reduced where the shards lie, the results shipped while that goes on; then each epoch runs centrally on them.

    Without a gang a single pass is all the work there is: what was reduced is then only shipped.
    """
    if work.output_share is None:
        raise PlacementError("reduce-then-ship ships what tasks write, and nobody said how much that is")
    there = central_side(problem, answer.policy)
    sizes = np.round(here.shard_bytes * work.output_share).astype(np.int64)
    target = spread(there)
    reducing = simulate(here, answer, machines)
    shipping = transfer_seconds(here, answer.node.astype(np.int64), target, sizes, machines)
    moved: Moved = {("input", tier): size for tier, size in answer.moved_bytes(here).items()}
    far = problem.rack[answer.node] != problem.rack[target]
    moved["output", Tier.OFF_RACK] = int(sizes[far].sum())
    moved["output", Tier.RACK_LOCAL] = int(sizes[~far].sum())
    simulated = replace(
        reducing,
        seconds=max(reducing.seconds, shipping),
        network_seconds=max(reducing.network_seconds, shipping),
    )
    held = simulated.seconds * slots_of(here, answer.node)
    notes: tuple[str, ...] = ()
    if work.gang is not None or work.epochs > 1:
        notes = (
            "reduce-then-ship: reducing a shard is taken to occupy a node as long as one pass of the work over it.",
        )
        at_target = replace(answer, node=target.astype(np.int32))
        training = simulate(
            replace(_copied(there, at_target), shard_bytes=sizes),
            _at_home(at_target),
            machines,
            epochs=work.epochs,
            gang=work.gang,
        )
        simulated = _after(simulated, training)
        held += training.seconds * slots_of(there, at_target.node)
        moved["input", Tier.NODE_LOCAL] = moved.get(("input", Tier.NODE_LOCAL), 0) + int(sizes.sum()) * work.epochs
        moved |= _gradients(training)
    return Ran(
        problem=here,
        answer=answer,
        simulated=simulated,
        bound=bound,
        bytes=moved,
        slot_seconds=held,
        notes=notes,
    )


def _copied(problem: Problem, answer: Assigned) -> Problem:
    """The same shards, each with one replica where it is worked on."""
    return replace(
        problem,
        replica_offsets=np.arange(problem.shards + 1, dtype=np.int64),
        replica_nodes=answer.node.astype(np.int32),
    )


def _at_home(answer: Assigned) -> Assigned:
    none = np.zeros(len(answer.node), dtype=np.int8)
    return replace(answer, tier=none, reason=none)


def _after(first: Simulated, then: Simulated) -> Simulated:
    """One after the other."""

    def both(a: float | None, b: float | None) -> float | None:
        return None if a is None or b is None else a + b

    return Simulated(
        seconds=first.seconds + then.seconds,
        compute_seconds=first.compute_seconds + then.compute_seconds,
        disk_seconds=first.disk_seconds + then.disk_seconds,
        network_seconds=first.network_seconds + then.network_seconds,
        sync_seconds=first.sync_seconds + then.sync_seconds,
        waiting_seconds=first.waiting_seconds + then.waiting_seconds,
        serving_seconds=first.serving_seconds + then.serving_seconds,
        gradient_bytes=then.gradient_bytes,
        busy_seconds=first.busy_seconds + then.busy_seconds,
        idle_joules=both(first.idle_joules, then.idle_joules),
        busy_joules=both(first.busy_joules, then.busy_joules),
    )


def _gradients(simulated: Simulated) -> Moved:
    return {("gradients", tier): size for tier, size in simulated.gradient_bytes.items()}


def slots_of(problem: Problem, node: Nodes) -> int:
    """Slots of the nodes that work."""
    return int(problem.slots[np.unique(node)].sum())
