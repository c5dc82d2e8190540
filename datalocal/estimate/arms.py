"""One policy in `simulate`, from its name to its figures: placed, and run in virtual time. Pure."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from datalocal.errors import PlacementError
from datalocal.estimate.bottleneck import Bottleneck, bottleneck
from datalocal.estimate.central import CENTRAL, central, central_side, not_on_array, on_array, spread, storage_side
from datalocal.estimate.simulation import Gang, Machines, Simulated, simulate, transfer_seconds
from datalocal.placement.family import optimal_makespan, placing
from datalocal.placement.model import Tier
from datalocal.placement.problem import Assigned, Ints, Mask, Nodes, Problem, Reason, assigned
from datalocal.placement.replicas import kept_shards

Moved = dict[tuple[str, Tier], int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What is to be done with the shards."""

    epochs: int = 1
    gang: Gang | None = None
    """None: independent tasks."""
    output_share: float | None = None
    """Bytes that a task writes per byte that it reads: what reduce-then-ship ships, and cannot do without."""
    cached_share: float = 0.5
    """Share of the shards that central-cached keeps on the compute nodes' disks."""


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


def place(
    problem: Problem, policy: str, makespan_s: float | None, seed: int, *, slack: float = 0.0
) -> tuple[Problem, Assigned]:
    """The problem as this way of working sees it, and the policy's answer.

    `makespan_s` None: the shortest that its nodes can keep; `slack`: how much longer optimal-makespan may take, as a share of
    it. Raises PlacementError.
    """
    if policy in CENTRAL and policy != "reduce-then-ship":
        read = on_array(problem) if policy == "san" else problem
        return central_side(read, policy), central(read, policy)
    here = storage_side(problem)
    if policy == "optimal-makespan":
        return here, optimal_makespan(here, makespan_s, seed, epsilon=slack)
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
    if answer.policy == "central-cached":
        return _cached(here, answer, machines, work, bound)
    if answer.policy == "san":
        return _from_array(problem, here, answer, machines, work, bound)
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
    copying = _copying(here, answer, machines)
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


def _cached(here: Problem, answer: Assigned, machines: Machines, work: Work, bound: Bottleneck) -> Ran:
    """All of it read over the network once, and a share of it kept; in later epochs that share comes from the own disk.

    Which shards are kept never changes: a cache that evicts within an epoch keeps less, as every shard is read once in each.
    """
    keeps = kept_shards(here.shards, work.cached_share)
    first = simulate(here, answer, machines, gang=work.gang)
    together = _while_writing(first, here, answer, machines, np.where(keeps, here.shard_bytes, 0))
    moved: Moved = {("input", tier): size for tier, size in answer.moved_bytes(here).items()}
    gradients = _gradients(first)
    if work.epochs > 1:
        beside = _also_on(here, answer, keeps)
        later = assigned(beside, answer.node, policy=answer.policy, makespan_s=answer.makespan_s, why=Reason.NOT_ASKED)
        training = simulate(beside, later, machines, epochs=work.epochs - 1, gang=work.gang)
        together = _after(together, training)
        for tier, size in later.moved_bytes(beside).items():
            moved["input", tier] = moved.get(("input", tier), 0) + size * (work.epochs - 1)
        gradients = _gradients(together)
    return Ran(
        problem=here,
        answer=answer,
        simulated=together,
        bound=bound,
        bytes=moved | gradients,
        slot_seconds=together.seconds * slots_of(here, answer.node),
    )


def _from_array(
    problem: Problem, here: Problem, answer: Assigned, machines: Machines, work: Work, bound: Bottleneck
) -> Ran:
    """The arrays are loaded with what does not lie on them, then every epoch reads from them; `problem`: as the data lie."""
    absent = not_on_array(problem)
    training = simulate(here, answer, machines, epochs=work.epochs, gang=work.gang)
    moved: Moved = {("input", tier): size * work.epochs for tier, size in answer.moved_bytes(here).items()}
    together = training
    notes: tuple[str, ...] = ()
    if absent.any():
        missing = replace(problem, shard_bytes=np.where(absent, problem.shard_bytes, 0))
        array = here.replica_nodes[here.replica_offsets[:-1]]
        loaded = assigned(missing, array, policy="san", makespan_s=0.0, why=Reason.NOT_ASKED)
        together = _after(_copying(missing, loaded, machines), training)
        moved |= {("staging", tier): size for tier, size in loaded.moved_bytes(missing).items()}
        notes = ("san: loading the array is counted; a site whose data already lie on one does not pay for it.",)
    return Ran(
        problem=here,
        answer=answer,
        simulated=together,
        bound=bound,
        bytes=moved | _gradients(training),
        slot_seconds=together.seconds * slots_of(here, answer.node),
        notes=notes,
    )


def _copying(problem: Problem, answer: Assigned, machines: Machines) -> Simulated:
    """Every shard to the disk of the node that `answer` names."""
    none = replace(problem, speed=np.full(problem.nodes, np.inf))  # copying computes nothing
    return _while_writing(simulate(none, answer, machines), problem, answer, machines, problem.shard_bytes)


def _while_writing(
    running: Simulated, problem: Problem, answer: Assigned, machines: Machines, sizes: Ints
) -> Simulated:
    """`running`, while `sizes` [N] of the shards are written where they are worked on: whatever takes longer."""
    if machines.disk_bytes_per_second is None:
        return running
    there = np.bincount(answer.node, weights=sizes, minlength=problem.nodes)
    writing = float((there / machines.disk_bytes_per_second).max(initial=0.0))
    return replace(_until(running, writing), disk_seconds=max(running.disk_seconds, writing))


def _until(running: Simulated, seconds: float) -> Simulated:
    """`running`, which is not over before something else is: its nodes idle until then."""
    longer = max(running.seconds, seconds)
    idle = running.idle_joules
    if idle is not None and running.seconds:
        idle *= longer / running.seconds
    return replace(running, seconds=longer, idle_joules=idle)


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
    simulated = replace(_until(reducing, shipping), network_seconds=max(reducing.network_seconds, shipping))
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


def _also_on(problem: Problem, answer: Assigned, which: Mask) -> Problem:
    """The same shards, of which those in `which` [N] have one more replica, where they are worked on."""
    shard = np.concatenate((problem.owner, np.flatnonzero(which)))
    node = np.concatenate((problem.replica_nodes, answer.node[which]))
    distinct = np.unique(shard * problem.nodes + node)
    counts = np.bincount(distinct // problem.nodes, minlength=problem.shards)
    return replace(
        problem,
        replica_offsets=np.concatenate(([0], np.cumsum(counts))).astype(np.int64),
        replica_nodes=(distinct % problem.nodes).astype(np.int32),
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
        gradient_bytes=dict(Counter(first.gradient_bytes) + Counter(then.gradient_bytes)),
        busy_seconds=first.busy_seconds + then.busy_seconds,
        idle_joules=both(first.idle_joules, then.idle_joules),
        busy_joules=both(first.busy_joules, then.busy_joules),
    )


def _gradients(simulated: Simulated) -> Moved:
    return {("gradients", tier): size for tier, size in simulated.gradient_bytes.items()}


def slots_of(problem: Problem, node: Nodes) -> int:
    """Slots of the nodes that work."""
    return int(problem.slots[np.unique(node)].sum())
