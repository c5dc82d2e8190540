"""The placement problem as arrays, and its answer: which node works on which shard. Pure values.

1,000,000 shards with 3 replicas are a dozen arrays; names are packed bytes that are only decoded when somebody reads them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import IntEnum
from itertools import accumulate
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from datalocal.errors import PlacementError
from datalocal.placement.csr import any_of, spans
from datalocal.placement.model import Tier

Ints: TypeAlias = npt.NDArray[np.int64]
Nodes: TypeAlias = npt.NDArray[np.int32]
Codes: TypeAlias = npt.NDArray[np.int8]
Floats: TypeAlias = npt.NDArray[np.float64]
Mask: TypeAlias = npt.NDArray[np.bool_]

ROLES = ("storage", "compute", "array")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Names:
    """Many names in one buffer: `names[i]` decodes the i-th, `len(names)` says how many there are."""

    offsets: Ints
    """[N + 1] into `text`."""
    text: npt.NDArray[np.uint8]
    """The names in UTF-8, one after the other."""

    @classmethod
    def of(cls, names: Iterable[str]) -> Names:
        """Pack these names."""
        packed = [name.encode() for name in names]
        offsets = np.fromiter(accumulate(map(len, packed), initial=0), dtype=np.int64, count=len(packed) + 1)
        return cls(offsets=offsets, text=np.frombuffer(b"".join(packed), dtype=np.uint8))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, number: int) -> str:
        return self.text[self.offsets[number] : self.offsets[number + 1]].tobytes().decode()


class Reason(IntEnum):
    """Why a shard is not worked on where a replica lies."""

    LOCAL = 0
    NO_REPLICA = 1
    HOLDERS_DOWN = 2
    HOLDERS_WITHOUT_SLOTS = 3
    HOLDERS_FULL = 4
    NOT_ASKED = 5
    WAITED = 6
    TRADED = 7

    @property
    def text(self) -> str:
        """The reason as a person reads it; empty when the shard is local."""
        return _REASONS[self]


_REASONS = {
    Reason.LOCAL: "",
    Reason.NO_REPLICA: "no node of this cluster holds a whole replica",
    Reason.HOLDERS_DOWN: "the nodes that hold it are down",
    Reason.HOLDERS_WITHOUT_SLOTS: "the nodes that hold it have no slot to work in",
    Reason.HOLDERS_FULL: "the nodes that hold it are full within the makespan",
    Reason.NOT_ASKED: "the policy does not look at replicas",
    Reason.WAITED: "the nodes that hold it were busy for longer than the policy waits",
    Reason.TRADED: "elsewhere it costs less in all",
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Power:
    """Watts of whole nodes, as somebody declares them: doing nothing, and with every slot at work."""

    idle_watts: Floats
    """[M]"""
    busy_watts: Floats
    """[M] at least `idle_watts`."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Problem:
    """N shards, their R replicas, and M nodes that work. Node numbers index every per-node array."""

    shard_bytes: Ints
    """[N]"""
    shard_rows: Ints
    """[N]"""
    replica_offsets: Ints
    """[N + 1] CSR offsets into `replica_nodes`."""
    replica_nodes: Nodes
    """[R] node numbers, ascending and distinct within a shard."""
    slots: Ints
    """[M] tasks at a time; 0 for a node that holds shards and does not work."""
    speed: Floats
    """[M] shards per second and slot."""
    rack: Nodes
    """[M] rack number."""
    role: Codes
    """[M] number into `ROLES`."""
    alive: Mask
    """[M] whether the node is up."""
    shard_names: Names
    node_names: Names
    rack_names: Names
    power: Power | None = None
    """None: nobody declared any."""

    def __post_init__(self) -> None:
        for name, wanted in (
            ("shard_rows", self.shards),
            ("replica_offsets", self.shards + 1),
            ("shard_names", self.shards),
            ("speed", self.nodes),
            ("rack", self.nodes),
            ("role", self.nodes),
            ("alive", self.nodes),
            ("node_names", self.nodes),
        ):
            if len(getattr(self, name)) != wanted:
                raise ValueError(f"{name} has {len(getattr(self, name))} entries, {wanted} are needed")
        if len(self.replica_nodes) != self.replica_offsets[-1]:
            raise ValueError("replica_offsets does not end at the number of replicas")
        if len(self.replica_nodes) and not 0 <= self.replica_nodes.min() <= self.replica_nodes.max() < self.nodes:
            raise ValueError("a replica lies on a node that does not exist")

    @property
    def shards(self) -> int:
        """N."""
        return len(self.shard_bytes)

    @property
    def nodes(self) -> int:
        """M."""
        return len(self.slots)

    @property
    def rate(self) -> Floats:
        """[M] shards per second of a whole node; 0 when it is down or has no slots."""
        return np.where(self.alive, self.slots * self.speed, 0.0)

    @property
    def owner(self) -> Ints:
        """[R] the shard of each replica."""
        return np.repeat(np.arange(self.shards, dtype=np.int64), np.diff(self.replica_offsets))

    def capacity(self, makespan_s: float) -> Ints:
        """[M] shards that each node finishes within `makespan_s`: floor(T x slots x speed), at most N; 0 when it is down."""
        finished = np.floor(makespan_s * self.slots * self.speed)
        return np.where(self.alive, np.minimum(finished, self.shards), 0).astype(np.int64)

    def least_makespan(self) -> float:
        """The smallest T in seconds within which all nodes together finish N shards. PlacementError when nobody works."""
        if not self.shards:
            return 0.0
        if not self.rate.any():
            raise PlacementError(
                f"none of the {self.nodes} nodes is up and has a slot", "give a node slots, or bring one up"
            )
        low, high = 0.0, float(self.shards / self.rate.max())
        while int(self.capacity(high).sum()) < self.shards:  # rounding of the quotient
            high = float(np.nextafter(high, np.inf))
        while low < (middle := (low + high) / 2) < high:
            low, high = (low, middle) if int(self.capacity(middle).sum()) >= self.shards else (middle, high)
        return high

    def makespan(self, node: Nodes) -> float:
        """Seconds until the last node is done with the shards that `node` [N] gives it."""
        load = np.bincount(node, minlength=self.nodes)
        busy = load > 0
        return float((load[busy] / self.rate[busy]).max()) if busy.any() else 0.0

    def require(self, makespan_s: float) -> Ints:
        """`capacity(makespan_s)`. Raises PlacementError when it is less than N, with the T that would do."""
        if not 0 <= makespan_s < np.inf:
            raise PlacementError(f"a makespan of {makespan_s} s is none", "give seconds, 0 or more")
        capacity = self.capacity(makespan_s)
        if int(capacity.sum()) < self.shards:
            least = self.least_makespan()
            raise PlacementError(
                f"within {makespan_s:g} s all nodes together finish {int(capacity.sum()):,} of {self.shards:,} shards",
                f"allow a makespan of at least {least!r} s, or add slots",
            )
        return capacity

    def without(self, node: int) -> Problem:
        """The same problem with that node down."""
        alive = self.alive.copy()
        alive[node] = False
        return replace(self, alive=alive)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Assigned:
    """One policy's answer: a node for each of the N shards within the makespan T."""

    policy: str
    makespan_s: float
    """T, for which capacity was counted."""
    node: Nodes
    """[N] node number."""
    tier: Codes
    """[N] `Tier` of the nearest replica."""
    reason: Codes
    """[N] `Reason`; LOCAL exactly where the tier is NODE_LOCAL."""
    notes: tuple[str, ...] = ()
    """What a reader should know: a solver that is not there, a bound that was not reached."""
    waiting_seconds: float = 0.0
    """How much later than by their loads alone the nodes are done, because the policy let them wait; reading not counted."""

    @property
    def local(self) -> int:
        """Shards that are read where they lie."""
        return int((self.tier == Tier.NODE_LOCAL).sum())

    def moved_bytes(self, problem: Problem) -> dict[Tier, int]:
        """Bytes read over each tier."""
        summed = np.bincount(self.tier, weights=problem.shard_bytes, minlength=len(Tier))
        return {tier: int(summed[tier]) for tier in Tier}


def relative_gap(found: float, at_least: float) -> float:
    """(found - at_least) / at_least; 0 for what cannot be better, infinite for a bound of 0 that is not reached."""
    if found <= at_least:
        return 0.0
    return (found - at_least) / at_least if at_least else float("inf")


def assigned(
    problem: Problem,
    node: npt.NDArray[np.integer],
    *,
    policy: str,
    makespan_s: float,
    why: Reason | Codes = Reason.HOLDERS_FULL,
    notes: tuple[str, ...] = (),
    waiting_seconds: float = 0.0,
) -> Assigned:
    """Fill in tiers and reasons. `why`, one for all or [N], is for shards that are not local where a holder is up and works."""
    tier = tiers(problem, node)
    reason = np.where(tier == Tier.NODE_LOCAL, np.int8(Reason.LOCAL), np.asarray(why, dtype=np.int8)).astype(np.int8)
    away = np.flatnonzero(reason != Reason.LOCAL)
    if away.size:
        reason[away] = np.minimum(reason[away], excuses(problem, away))
    return Assigned(
        policy=policy,
        makespan_s=makespan_s,
        node=node.astype(np.int32),
        tier=tier,
        reason=reason,
        notes=notes,
        waiting_seconds=waiting_seconds,
    )


def excuses(problem: Problem, shards: Ints) -> Codes:
    """For each of `shards` the strongest reason that holds whatever the policy does; TRADED where there is none."""
    entry, of = spans(problem.replica_offsets, shards)
    held = problem.replica_nodes[entry]
    excuse = np.full(len(shards), Reason.NO_REPLICA, dtype=np.int8)
    excuse[of] = Reason.HOLDERS_DOWN
    excuse[of[problem.alive[held]]] = Reason.HOLDERS_WITHOUT_SLOTS
    excuse[of[problem.rate[held] > 0]] = Reason.TRADED
    return excuse


def tiers(problem: Problem, node: npt.NDArray[np.integer]) -> Codes:
    """[N] how far the nearest replica that is up is from `node` [N]; OFF_RACK when there is none."""
    here = problem.replica_nodes == np.repeat(node, np.diff(problem.replica_offsets))
    here &= problem.alive.take(problem.replica_nodes)
    local = any_of(problem.replica_offsets, here)
    best = np.where(local, np.int8(Tier.NODE_LOCAL), np.int8(Tier.OFF_RACK))
    away = np.flatnonzero(~local)
    entry, of = spans(problem.replica_offsets, away)
    held = problem.replica_nodes[entry]
    near = (problem.rack[held] == problem.rack[node[away]][of]) & problem.alive[held]
    best[away[of[near]]] = Tier.RACK_LOCAL
    return best


def nearness(problem: Problem, node: npt.NDArray[np.integer]) -> Codes:
    """[R] how far each replica is from the node that its shard is on by `node` [N], up or not."""
    there = np.repeat(node, np.diff(problem.replica_offsets))
    near = np.where(problem.rack[problem.replica_nodes] == problem.rack[there], Tier.RACK_LOCAL, Tier.OFF_RACK)
    near[problem.replica_nodes == there] = Tier.NODE_LOCAL
    return near.astype(np.int8)
