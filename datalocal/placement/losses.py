"""What it costs to lose nodes: the exact repair of an optimal assignment, beside a plan made anew. Pure; the clock is given."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from datalocal.errors import PlacementError
from datalocal.placement.certificate import Certificate, certificate_of
from datalocal.placement.family import certified_optimal_bytes
from datalocal.placement.flow import Cut
from datalocal.placement.mend import Mender
from datalocal.placement.model import Tier
from datalocal.placement.problem import Assigned, Mask, Problem

NOT_OPTIMAL = "repair starts from a placement with as many local shards as can be, and this one has fewer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """One node is lost, after those before it: what the repair did, and what a plan made anew would have done."""

    node: str
    changed: int
    """Shards that go to another node than before; those of the lost node are among them."""
    non_local: int
    """Shards that are not local now, and no placement has fewer."""
    moved_bytes: int
    """Of those, each time they are read."""
    without_replica: int
    """Of the shards that are not local, those that nobody who is up holds: they are lost, too."""
    certificate: Certificate
    """From the cut that the repair returns."""
    repair_seconds: float
    anew_changed: int
    anew_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Losses:
    """Of one arm: the nodes one after the other, or why it cannot be told."""

    each: tuple[Loss, ...] = ()
    reason: str = ""
    problem: Problem | None = None
    """Without the lost nodes."""


def numbers_of(problem: Problem, names: Sequence[str]) -> list[int]:
    """The nodes called `names`. Raises PlacementError, with the names that are near."""
    known = {problem.node_names[number]: number for number in range(problem.nodes)}
    for place, name in enumerate(names):
        if name not in known:
            plain = _plain(name)
            near = [other for other in known if _plain(other) == plain]
            near = near or difflib.get_close_matches(name, known, n=3, cutoff=0.6)
            first, last = problem.node_names[0], problem.node_names[problem.nodes - 1]
            hint = (
                f"did you mean {' or '.join(near)}?" if near else f"the {problem.nodes:,} nodes are {first} to {last}"
            )
            raise PlacementError(f"there is no node {name!r} to lose", hint)
        if name in names[:place]:
            raise PlacementError(f"{name} can be lost only once", "name each node once")
    return [known[name] for name in names]


def _plain(name: str) -> str:
    """Without the zeros that numbers begin with: node7 is meant for node007."""
    return re.sub(r"0+(?=\d)", "", name)


def require_without(problem: Problem, nodes: Sequence[int], makespan_s: float) -> None:
    """Raises PlacementError, with the makespan that would do, when the others cannot do all the work within `makespan_s`."""
    left = _without(problem, nodes)
    names = ", ".join(problem.node_names[node] for node in nodes)
    if problem.shards and not left.rate.any():
        raise PlacementError(f"without {names} no node is left that works", "lose fewer nodes")
    able = int(left.capacity(makespan_s).sum())
    if able < problem.shards:
        raise PlacementError(
            f"without {names} the others finish {able:,} of {problem.shards:,} shards within {makespan_s:g} s",
            f"allow a makespan of at least {left.least_makespan()!r} s",
        )


def lose(problem: Problem, answer: Assigned, nodes: Sequence[int], clock: Callable[[], float]) -> Losses:
    """Lose `nodes` one after the other within the answer's makespan, and repair each time. `clock` gives seconds."""
    try:
        require_without(problem, nodes, answer.makespan_s)
        mender = Mender(problem, answer)
    except PlacementError as error:
        return Losses(reason=f"{error.message}: {error.hint}")
    except ValueError:
        return Losses(reason=NOT_OPTIMAL)
    found, before = [], answer.node
    for node in nodes:
        begin = clock()
        mended = mender.lose(node)
        took = clock() - begin
        here, now = mender.problem, mender.answer
        begin = clock()
        anew = certified_optimal_bytes(here, answer.makespan_s)[0]
        planning = clock() - begin
        found.append(
            Loss(
                node=problem.node_names[node],
                changed=len(mended.shard),
                non_local=mended.non_local,
                moved_bytes=int(here.shard_bytes[now.tier != Tier.NODE_LOCAL].sum()),
                without_replica=_unheld(here),
                certificate=_certificate(here, answer.makespan_s, mended.cut, mended.non_local),
                repair_seconds=took,
                anew_changed=int((anew.node != before).sum()),
                anew_seconds=planning,
            )
        )
        before = now.node
    return Losses(each=tuple(found), problem=mender.problem)


def _certificate(problem: Problem, makespan_s: float, cut: Mask, non_local: int) -> Certificate:
    """The two sums over the repair's own cut."""
    lightest = int(problem.shard_bytes.min(initial=0)) if problem.shards else 0
    return certificate_of(problem, makespan_s, (Cut(at_least_bytes=lightest, nodes=cut, non_local=non_local),))


def _unheld(problem: Problem) -> int:
    up = problem.owner[problem.alive[problem.replica_nodes]]
    return int((np.bincount(up, minlength=problem.shards) == 0).sum())


def _without(problem: Problem, nodes: Sequence[int]) -> Problem:
    alive = problem.alive.copy()
    alive[np.array(nodes, dtype=np.int64)] = False
    return replace(problem, alive=alive)
