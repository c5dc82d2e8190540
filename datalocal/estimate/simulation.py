"""The simulated executor: what a placement of N shards on M nodes takes, in closed form. Pure, and no event per task.

A node works through its queue while it reads ahead: it is done when its slots are, its disk is, and what it reads from others
has come. Uplinks of racks are shared max-min fairly by the flows between racks (progressive filling, Bertsekas and Gallager,
Data Networks, 6.5.2); rates are worked out anew whenever a quarter of the flows has ended. Gangs step together:
(Tc^g + Ts^g)^(1/g), Ts of a ring all-reduce (`steps`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from datalocal.estimate.bottleneck import sources
from datalocal.estimate.steps import GAMMA, ring_seconds, step_seconds
from datalocal.placement.model import Tier
from datalocal.placement.problem import Assigned, Floats, Ints, Problem


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Machines:
    """What the nodes of a problem have beside slots and speed. Shapes: M nodes."""

    link_bytes_per_second: Floats
    """[M] each way."""
    disk_bytes_per_second: Floats | None = None
    """[M]; None: reading never holds anybody up."""
    uplink_bytes_per_second: float | None = None
    """Of a rack, each way; None: no limit."""
    serve_seconds_per_byte: float = 0.0
    """Of a slot, for a byte that another node reads here."""
    idle_watts: Floats | None = None
    busy_watts: Floats | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Gang:
    """Data-parallel training by all nodes that have work."""

    gradient_bytes: int
    batch: int
    """Samples of all nodes per step."""
    latency_seconds: float = 0.0
    """Of a hop of the ring."""
    gamma: float = GAMMA


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulated:
    """One placement, in virtual time. Seconds of resources overlap; `seconds` is when the last one is done."""

    seconds: float
    compute_seconds: float
    disk_seconds: float
    network_seconds: float
    sync_seconds: float
    waiting_seconds: float
    """Added because the policy let nodes wait for shards of their own."""
    serving_seconds: float
    """How much longer it takes because nodes serve others beside their own work."""
    gradient_bytes: dict[Tier, int]
    busy_seconds: float
    """Of all nodes together."""
    idle_joules: float | None
    busy_joules: float | None

    @property
    def bottleneck(self) -> str:
        """Which resource is done last."""
        named = {
            "compute": self.compute_seconds,
            "disk": self.disk_seconds,
            "network": self.network_seconds,
            "sync": self.sync_seconds,
            "shards of its own": self.waiting_seconds,
        }
        return max(named, key=lambda name: named[name])


def simulate(
    problem: Problem, answer: Assigned, machines: Machines, *, epochs: int = 1, gang: Gang | None = None
) -> Simulated:
    """`epochs` passes over the data: every shard is read in each of them, from the nearest holder that is up."""
    source = sources(problem, answer)
    moved = np.flatnonzero((source != answer.node) & (source >= 0))
    received = _sum(answer.node[moved], problem.shard_bytes[moved], problem.nodes)
    served = _sum(source[moved], problem.shard_bytes[moved], problem.nodes)
    own = _sum(answer.node, problem.shard_bytes, problem.nodes) - received
    links = machines.link_bytes_per_second
    arriving = np.maximum(received / links, _over_uplinks(problem, answer, source, moved, machines))
    network = np.maximum(arriving, served / links)
    load = np.bincount(answer.node, minlength=problem.nodes)
    slots, speed = np.maximum(problem.slots, 1), problem.speed
    working = np.ceil(load / slots) / speed
    busy = working + served * machines.serve_seconds_per_byte / slots
    disk = lending = np.zeros(problem.nodes)
    if machines.disk_bytes_per_second is not None:
        disk, lending = own / machines.disk_bytes_per_second, served / machines.disk_bytes_per_second
    first = _first_read(problem, load, own + received, received, machines)
    last = np.where(load > 0, 1 / speed, 0.0)

    def finished(computing: Floats, reading: Floats) -> Floats:
        return np.maximum(computing + first, reading + np.where(reading > 0, last, 0.0))

    node = finished(busy, np.maximum(disk + lending, network))
    alone = finished(working, np.maximum(disk, arriving))
    sync = steps = 0.0
    sent: dict[Tier, int] = {}
    if gang is not None:
        steps = float(-(-int(problem.shard_rows.sum()) // gang.batch))
        sync = _ring_seconds(problem, load, machines, gang) * steps
        sent = _ring_bytes(problem, load, gang, int(steps) * epochs)
        stepping = step_seconds(float(busy.max(initial=0.0)), sync, gang.gamma)
        seconds = max(stepping + float(first.max(initial=0.0)), float(node.max(initial=0.0)))
    else:
        seconds = float(node.max(initial=0.0)) + answer.waiting_seconds
    total = epochs * seconds
    idle, above = _joules(machines, (load > 0) | (served > 0), busy * epochs, total)
    return Simulated(
        seconds=total,
        compute_seconds=epochs * float(busy.max(initial=0.0)),
        disk_seconds=epochs * float((disk + lending).max(initial=0.0)),
        network_seconds=epochs * float(network.max(initial=0.0)),
        sync_seconds=epochs * sync,
        waiting_seconds=epochs * answer.waiting_seconds if gang is None else 0.0,
        serving_seconds=epochs * float(node.max(initial=0.0) - alone.max(initial=0.0)),
        gradient_bytes=sent,
        busy_seconds=float(busy.sum()) * epochs,
        idle_joules=idle,
        busy_joules=above,
    )


def transfer_seconds(problem: Problem, source: Ints, target: Ints, sizes: Ints, machines: Machines) -> float:
    """How long it takes to send `sizes` bytes from each of `source` to each of `target`, all at once."""
    away = np.flatnonzero((source != target) & (source >= 0))
    moving = replace(problem, shard_bytes=sizes)
    answer = Assigned(
        policy="transfer",
        makespan_s=0.0,
        node=target.astype(np.int32),
        tier=np.zeros(len(target), np.int8),
        reason=np.zeros(len(target), np.int8),
    )
    busier = np.maximum(_sum(target[away], sizes[away], problem.nodes), _sum(source[away], sizes[away], problem.nodes))
    over = _over_uplinks(moving, answer, source, away, machines)
    return float(np.maximum(busier / machines.link_bytes_per_second, over).max(initial=0.0))


def _sum(places: npt.NDArray[np.integer], sizes: Ints, count: int) -> Floats:
    return np.asarray(np.bincount(places, weights=sizes, minlength=count), dtype=np.float64)


def _over_uplinks(problem: Problem, answer: Assigned, source: Ints, moved: Ints, machines: Machines) -> Floats:
    """[M] when the last byte that a node reads from another rack has passed the uplinks; 0 where they have no limit."""
    done = np.zeros(problem.nodes)
    if machines.uplink_bytes_per_second is None or not moved.size:
        return done
    racks = len(problem.rack_names)
    sender, reader = problem.rack[source[moved]], problem.rack[answer.node[moved]]
    off = sender != reader
    if not off.any():
        return done
    pair = sender[off].astype(np.int64) * racks + reader[off]
    keys, inverse, counts = np.unique(pair, return_inverse=True, return_counts=True)
    sizes = _sum(inverse, problem.shard_bytes[moved][off], len(keys))
    links = np.bincount(problem.rack, weights=machines.link_bytes_per_second, minlength=racks)
    limit = np.minimum(links, machines.uplink_bytes_per_second)
    ends = finish_times(sizes, counts.astype(np.float64), keys // racks, keys % racks, limit, limit)
    np.maximum.at(done, answer.node[moved][off], ends[inverse])
    return done


def finish_times(sizes: Floats, weights: Floats, sender: Ints, reader: Ints, up: Floats, down: Floats) -> Floats:
    """[F] when each of F flows from place `sender` to place `reader` ends, rates being max-min fair by `weights`.

    A flow that ends gives its rate to others when a quarter of those under way has ended, so ends come out late rather than
    early; with up to four flows they are exact.
    """
    left, ends, now = sizes.astype(np.float64).copy(), np.zeros(len(sizes)), 0.0
    active = np.flatnonzero(left > 0)
    while active.size:
        rate = max_min(weights[active], sender[active], reader[active], up, down)
        needed = left[active] / rate
        horizon = np.partition(needed, (active.size - 1) // 4)[(active.size - 1) // 4]
        over = needed <= horizon * (1 + 1e-12)
        ends[active[over]] = now + needed[over]
        left[active] -= rate * horizon
        now += float(horizon)
        active = active[~over]
    return ends


def max_min(weights: Floats, sender: Ints, reader: Ints, up: Floats, down: Floats) -> Floats:
    """[F] max-min fair rates: a place whose share nobody on it undercuts elsewhere is full, and fixes its flows."""
    rate = np.zeros(len(weights))
    room_up, room_down = up.astype(np.float64).copy(), down.astype(np.float64).copy()
    open_ = np.arange(len(weights))
    while open_.size:
        here, there, weight = sender[open_], reader[open_], weights[open_]
        share_up = _share(room_up, here, weight)
        share_down = _share(room_down, there, weight)
        out, into = share_up[here], share_down[there]
        lowest_up, lowest_down = np.full(len(up), np.inf), np.full(len(down), np.inf)
        np.minimum.at(lowest_up, here, into)
        np.minimum.at(lowest_down, there, out)
        same = 1 + 1e-12
        fixed = (share_up <= lowest_up * same)[here] | (share_down <= lowest_down * same)[there]
        level = np.minimum(out, into)[fixed] * weight[fixed]
        rate[open_[fixed]] = level
        room_up = np.maximum(0.0, room_up - np.bincount(here[fixed], weights=level, minlength=len(up)))
        room_down = np.maximum(0.0, room_down - np.bincount(there[fixed], weights=level, minlength=len(down)))
        open_ = open_[~fixed]
    return rate


def _share(room: Floats, places: Ints, weights: Floats) -> Floats:
    """[places] what a flow of weight 1 gets there; without limit where there is none."""
    total = np.bincount(places, weights=weights, minlength=len(room))
    return np.asarray(np.divide(room, total, out=np.full(len(room), np.inf), where=total > 0), dtype=np.float64)


def _first_read(problem: Problem, load: Ints, read: Floats, received: Floats, machines: Machines) -> Floats:
    """[M] what reading ahead cannot hide: the first shard."""
    mean = read / np.maximum(load, 1)
    away = received > read / 2
    first = np.where(away, mean / machines.link_bytes_per_second, 0.0)
    if machines.disk_bytes_per_second is not None:
        first = np.maximum(first, mean / machines.disk_bytes_per_second)
    return np.where(load > 0, first, 0.0)


def _ring_seconds(problem: Problem, load: Ints, machines: Machines, gang: Gang) -> float:
    """One all-reduce of the nodes that work, in a ring that goes rack by rack: each uplink carries one hop."""
    members = np.flatnonzero(load)
    m = len(members)
    if m < 2:
        return 0.0
    slowest = float(machines.link_bytes_per_second[members].min())
    if machines.uplink_bytes_per_second is not None and len(np.unique(problem.rack[members])) > 1:
        slowest = min(slowest, machines.uplink_bytes_per_second)
    return ring_seconds(m, gang.gradient_bytes, slowest, gang.latency_seconds)


def _ring_bytes(problem: Problem, load: Ints, gang: Gang, steps: int) -> dict[Tier, int]:
    members = np.flatnonzero(load)
    m, racks = len(members), len(np.unique(problem.rack[members]))
    if m < 2:
        return {}
    total = 2 * (m - 1) * gang.gradient_bytes * steps
    off = round(total * racks / m) if racks > 1 else 0
    return {Tier.RACK_LOCAL: total - off, Tier.OFF_RACK: off}


def _joules(
    machines: Machines, partakes: npt.NDArray[np.bool_], busy: Floats, seconds: float
) -> tuple[float | None, float | None]:
    """Idle watts of all nodes that work or serve, for all the time, and what busy seconds take above that."""
    if machines.idle_watts is None or machines.busy_watts is None:
        return None, None
    above = machines.busy_watts - machines.idle_watts
    return float(machines.idle_watts[partakes].sum()) * seconds, float((above * np.minimum(busy, seconds)).sum())
