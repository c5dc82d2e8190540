"""The makespan and the placement that need the fewest joules: work, reading over the network, and nodes that idle meanwhile. Pure.

    E(T) = F(T) + T x sum of idle watts

F(T): the least joules of working and moving within T, a minimum-cost flow. F falls with T (efficient nodes may do more, less
is moved) and is convex, the idle joules grow: E has one minimum but for the steps of whole shards. Between the moments at which
some node could finish one more shard F does not change, so only those moments are looked at, and of them only those whose lower
bound (the cheapest nodes first, nothing moved) is below the best placement found. Where moving is no small part of what was
found, that bound misleads, and the minimum is looked for anew, up to the T from which on F is as low as it gets: with few shards
among all those moments. All nodes that work idle until T.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from datalocal.errors import PlacementError
from datalocal.placement.flow import cheapest, finishing, match, near
from datalocal.placement.model import Tier
from datalocal.placement.problem import Assigned, Floats, Ints, Power, Problem, Reason, assigned, relative_gap
from datalocal.placement.quincy import TIMEOUT_S, Tariff, quincy
from datalocal.placement.waves import NOWHERE
from datalocal.units import format_joules, format_seconds, format_share

RACK_JOULES_PER_BYTE = 2.4e-9
OFF_RACK_JOULES_PER_BYTE = 2.7e-9
"""What one more byte costs: network cards and switches of a 10 Gbit/s data centre at the margin; idle switches are not in it."""
EXACT_SHARDS = 20_000
"""With more shards the search goes by the heuristic, and only what it finds is solved as a flow."""
MOVING_SHARE = 1e-3
"""Of all joules: where moving, or not moving, costs less than that, the bound leads to the minimum."""
MOMENTS = 300
SOLVES = 12
FEW_SHARDS = 100
"""With so few the steps of whole shards are large beside the whole: all makespans are tried."""
_STEPS = 1_000_000
"""The dearest node's joules per shard in units of the tariff."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Frugal:
    """A placement, what it needs in joules, and what no placement at any makespan needs less than."""

    answer: Assigned
    joules: float
    at_least: float
    unsolved: str = ""
    """Why the placement is a heuristic's; empty where it is an optimal flow at its makespan."""

    @property
    def gap(self) -> float:
        """(joules - at_least) / at_least; 0 for an optimum, infinite for a bound of 0 that is not reached."""
        return relative_gap(self.joules, self.at_least)


def energy(problem: Problem, makespan_s: float | None = None, seed: int = 0) -> Assigned:
    """The fewest joules, at whatever makespan that takes, at most T. `seed` changes nothing."""
    found = search(problem, makespan_s)
    told = (
        f"energy: {format_joules(found.joules)} within {format_seconds(found.answer.makespan_s)} (modelled from declared watts); "
        f"no placement needs less than {format_joules(found.at_least)} at {_span(makespan_s)}, gap {format_share(found.gap)}"
    )
    notes = (told, f"energy is placed by a heuristic: {found.unsolved}") if found.unsolved else (told,)
    return replace(found.answer, policy="energy", notes=notes)


def _span(makespan_s: float | None) -> str:
    return "any makespan" if makespan_s is None else f"a makespan of at most {format_seconds(makespan_s)}"


def search(problem: Problem, makespan_s: float | None = None, *, timeout_s: float = TIMEOUT_S) -> Frugal:
    """Over all makespans up to T. Raises PlacementError when T is too short, or when the nodes' watts are not known."""
    work, idle = shard_joules(problem), idle_watts(problem)
    first = problem.least_makespan()
    last = max(first, _enough(problem, work))
    if makespan_s is not None:
        problem.require(makespan_s)
        last = min(last, makespan_s)
    if not problem.shards:
        nothing = assigned(problem, np.empty(0, dtype=np.int32), policy="energy", makespan_s=0.0)
        return Frugal(answer=nothing, joules=0.0, at_least=0.0)
    lowest, at_least = _valley(problem, work, idle, last)
    exact = problem.shards <= EXACT_SHARDS

    def bound(moment: float) -> float:
        return _cheapest(problem.capacity(moment), work, problem.shards) + moment * idle

    def at(moment: float) -> Frugal:
        return _at(problem, moment, at_least, exact=exact, timeout_s=timeout_s)

    def least(moments: list[float], best: Frugal | None, solves: int) -> Frugal:
        """The lowest bounds first, until none is below what was found."""
        bounds = np.array([bound(moment) for moment in moments])
        for place in np.argsort(bounds, kind="stable")[:solves].tolist():
            if best is not None and bounds[place] >= best.joules:
                break
            found = at(moments[place])
            if best is None or found.joules < best.joules:
                best = found
        assert best is not None
        return best

    best = least(_moments(problem, first, last, lowest), None, SOLVES)
    if best.joules - bound(best.answer.makespan_s) > MOVING_SHARE * best.joules:
        slowest = float(problem.rate[problem.rate > 0].min())
        free_s = at(problem.shards / slowest * (1 + 1e-9)).answer.makespan_s
        free_s = max(first, free_s if makespan_s is None else min(free_s, makespan_s))
        every = _moments(problem, first, free_s, first)
        if problem.shards <= FEW_SHARDS and len(every) < MOMENTS:
            best = least(every, best, len(every))
        else:
            best = min((best, *_narrowing(at, first, free_s)), key=lambda found: found.joules)
    if not exact:
        solved = _at(problem, best.answer.makespan_s, at_least, exact=True, timeout_s=timeout_s)
        best = solved if solved.joules <= best.joules else best
    return best


def shard_joules(problem: Problem) -> Floats:
    """[M] joules above idle of working on one shard: (busy - idle watts) / (slots x speed); infinite where nobody works."""
    power = _known(problem)
    rate = problem.slots * problem.speed
    return np.where(problem.rate > 0, (power.busy_watts - power.idle_watts) / np.maximum(rate, 1e-300), np.inf)


def idle_watts(problem: Problem) -> float:
    """Of all nodes that work: none of them is switched off before the last one is done."""
    return float(_known(problem).idle_watts[problem.rate > 0].sum())


def joules(problem: Problem, answer: Assigned) -> float:
    """E of a placement at its makespan: work, reading over the network, idling."""
    work = float(shard_joules(problem)[answer.node].sum())
    return work + _wire(problem, answer) + answer.makespan_s * idle_watts(problem)


def _wire(problem: Problem, answer: Assigned) -> float:
    """Joules of reading over the network."""
    per_byte = np.array([0.0, RACK_JOULES_PER_BYTE, OFF_RACK_JOULES_PER_BYTE])[answer.tier]
    return float((per_byte * problem.shard_bytes).sum())


def _narrowing(at: Callable[[float], Frugal], low: float, high: float) -> list[Frugal]:
    """Golden-section search (Kiefer 1953) for the makespan of least joules: all that was found on the way, `high` too."""
    golden = (5**0.5 - 1) / 2
    left, right = at(high - golden * (high - low)), at(low + golden * (high - low))
    every = [at(high), left, right]
    while len(every) < SOLVES:
        if left.joules <= right.joules:
            high, right = low + golden * (high - low), left
            left = at(high - golden * (high - low))
            every.append(left)
        else:
            low, left = high - golden * (high - low), right
            right = at(low + golden * (high - low))
            every.append(right)
    return every


def _known(problem: Problem) -> Power:
    if problem.power is None:
        raise PlacementError(
            "the policy energy needs the watts of the nodes, and nobody declared any",
            "give the cluster config `power: {idle_watts: ..., busy_watts: ...}`, or the nodes table columns of these names",
        )
    return problem.power


def _enough(problem: Problem, work: Floats) -> float:
    """The T from which on the most efficient nodes can do everything: if nothing had to move, no longer one could be better."""
    efficient = work <= work.min()
    rate = float(problem.rate[efficient].sum())
    return float((problem.shards + efficient.sum()) / rate)


def _cheapest(capacity: Ints | Floats, work: Floats, shards: int) -> float:
    """Joules of N shards on the most efficient capacity there is."""
    taken = cheapest(work, capacity, shards)
    used = taken > 0
    return float((taken[used] * work[used]).sum())


def _valley(problem: Problem, work: Floats, idle: float, last: float) -> tuple[float, float]:
    """Where the bound for shards that can be divided is lowest, over all T up to `last`, and how low."""

    def bound(moment: float) -> float:
        return _cheapest(moment * problem.rate, work, problem.shards) + moment * idle

    low = problem.shards / float(problem.rate.sum())
    high = max(low, last)
    for _ in range(100):
        third = (high - low) / 3
        low, high = (low, high - third) if bound(low + third) <= bound(high - third) else (low + third, high)
    return (low + high) / 2, min(bound(low), bound(high))


def _moments(problem: Problem, first: float, last: float, lowest: float) -> list[float]:
    """Up to MOMENTS makespans in [first, last] at which some node can finish one more shard, those around `lowest`; and `first`."""
    rates = np.unique(problem.rate[problem.rate > 0])
    found = [np.array([first])]
    for rate in rates.tolist():
        middle = int(np.clip(lowest, first, last) * rate)
        count = np.arange(max(1, middle - MOMENTS), middle + MOMENTS + 2)
        moments = count / rate
        found.append(np.where(np.floor(moments * rate) < count, np.nextafter(moments, np.inf), moments))
    every = np.unique(np.concatenate(found))
    every = every[(every >= first) & (every <= last)]
    nearest = every[np.argsort(np.abs(every - lowest), kind="stable")[:MOMENTS]]
    return [float(moment) for moment in np.unique(np.append(nearest, first))]


def _at(problem: Problem, moment: float, at_least: float, *, exact: bool, timeout_s: float) -> Frugal:
    """The best placement within `moment`, and no later: the flow's where it can be solved, else the better of the heuristics."""

    def told(answer: Assigned, unsolved: str) -> Frugal:
        answer = replace(answer, makespan_s=finishing(problem, np.bincount(answer.node, minlength=problem.nodes)))
        return Frugal(answer=answer, joules=joules(problem, answer), at_least=at_least, unsolved=unsolved)

    unsolved = "only the makespan that it found is solved as a flow"
    if exact:
        solved = quincy(problem, moment, tariff=_tariff(problem), timeout_s=timeout_s)
        if not solved.unsolved:
            return told(solved.answer, "")
        unsolved = solved.unsolved
    capacity = problem.require(moment)
    efficient = cheapest(shard_joules(problem), capacity, problem.shards).astype(np.int64)
    answers = [told(_matched(problem, moment, limit), unsolved) for limit in (efficient, capacity)]
    return min(answers, key=lambda found: found.joules)


def _matched(problem: Problem, moment: float, limit: Ints) -> Assigned:
    """As many local shards as can be within `limit` [M], the others as near as can be."""
    matching = match(problem, limit)
    place, left = matching.place, np.flatnonzero(matching.place == NOWHERE)
    place[left] = near(problem, left, limit - matching.load)
    return assigned(problem, place, policy="energy", makespan_s=moment, why=Reason.TRADED)


def _tariff(problem: Problem) -> Tariff:
    """Joules in whole units, a millionth of the dearest node's shard each."""
    work = shard_joules(problem)
    finite = np.where(np.isfinite(work), work, 0.0)
    mean = float(problem.shard_bytes.mean())
    unit = max(float(finite.max()), mean * OFF_RACK_JOULES_PER_BYTE, 1e-12) / _STEPS
    tiers = {Tier.RACK_LOCAL: RACK_JOULES_PER_BYTE, Tier.OFF_RACK: OFF_RACK_JOULES_PER_BYTE}
    rack, off_rack = (round(mean * per_byte / unit) for per_byte in tiers.values())
    return Tariff(rack=rack, off_rack=off_rack, node=np.round(finite / unit).astype(np.int64))
