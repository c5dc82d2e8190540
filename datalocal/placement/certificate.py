"""Why nobody can do better: a set D of nodes, and two sums that anybody can check by hand. Pure.

Shards whose replicas all lie in D can be local nowhere else, and the nodes of D finish only capacity(D) shards within T:
    non-local >= #{shards whose replicas all lie in D} - capacity(D)
holds for every D. The D of a maximum flow makes it an equality (Ford and Fulkerson's minimum cut).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from datalocal.placement.csr import any_of
from datalocal.placement.flow import Cut, Matching
from datalocal.placement.model import Tier
from datalocal.placement.problem import Assigned, Ints, Mask, Names, Problem, relative_gap
from datalocal.units import format_bytes, format_count, format_seconds, format_share


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Certificate:
    """A bound on every placement of one problem within one makespan, whoever made it."""

    makespan_s: float
    shards: int
    """N."""
    nodes: Ints
    """The node numbers of D."""
    enclosed: int
    """Shards whose replicas all lie in D (also those that nobody holds)."""
    capacity: int
    """Shards that D finishes within T."""
    moved_bytes_at_least: int
    """What no placement moves less than."""

    @property
    def non_local_at_least(self) -> int:
        """The bound on the number of shards."""
        return max(0, self.enclosed - self.capacity)

    @property
    def local_share_bound(self) -> float:
        """The bound as a share of all shards; 1 where there are none."""
        return 1 - self.non_local_at_least / self.shards if self.shards else 1.0

    def to_json(self, names: Names) -> dict[str, Any]:
        """D by `names`, and the two sums, as plain JSON values."""
        return {
            "nodes": [names[int(node)] for node in self.nodes],
            "shards": self.enclosed,
            "capacity": self.capacity,
            "non_local_at_least": self.non_local_at_least,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """One assignment beside the bound. All three counts are shards that are not local."""

    optimum_at_least: int
    ours: int
    moved_bytes_at_least: int
    moved_bytes: int

    @property
    def shards(self) -> int:
        """Shards that are moved although, for all that the bound says, they need not be."""
        return self.ours - self.optimum_at_least

    @property
    def bytes_share(self) -> float:
        """Bytes moved above the bound, relative to it; infinite where nothing has to move and something does."""
        return relative_gap(self.moved_bytes, self.moved_bytes_at_least)


def enclosed_by(problem: Problem, inside: Mask) -> Mask:
    """[N] whether every replica of a shard lies on a node of `inside` [M]; a shard without replicas is enclosed by any."""
    return ~any_of(problem.replica_offsets, (~inside).take(problem.replica_nodes))


def certify(problem: Problem, matching: Matching, makespan_s: float) -> Certificate:
    """The certificate of a maximum matching within `makespan_s`."""
    return certificate_of(problem, makespan_s, matching.cuts)


def certificate_of(problem: Problem, makespan_s: float, cuts: tuple[Cut, ...]) -> Certificate:
    """The certificate that these cuts give: the last is about all shards, the others about the heavy ones."""
    capacity = problem.capacity(makespan_s)
    inside = cuts[-1].nodes
    enclosed = enclosed_by(problem, inside)
    return Certificate(
        makespan_s=makespan_s,
        shards=problem.shards,
        nodes=np.flatnonzero(inside),
        enclosed=int(enclosed.sum()),
        capacity=int(capacity[inside].sum()),
        moved_bytes_at_least=max(
            _by_sizes(problem, capacity, cuts, enclosed), _lightest(problem, capacity, cuts[-1], enclosed)
        ),
    )


def _lightest(problem: Problem, capacity: Ints, cut: Cut, enclosed: Mask) -> int:
    """So many of the enclosed shards must move: at best the lightest of them."""
    count = max(0, int(enclosed.sum()) - int(capacity[cut.nodes].sum()))
    sizes = problem.shard_bytes[enclosed]
    return int(np.partition(sizes, count - 1)[:count].sum()) if count else 0


def _by_sizes(problem: Problem, capacity: Ints, cuts: tuple[Cut, ...], enclosed: Mask) -> int:
    """Moved bytes are the integral over s of the number of moved shards of at least s bytes; each cut bounds that number.

    `enclosed` [N] is what the last one encloses.
    """
    total = 0
    lighter = [*(cut.at_least_bytes for cut in cuts[1:]), 0]
    for cut, below in zip(cuts, lighter, strict=True):
        inside = enclosed if cut is cuts[-1] else enclosed_by(problem, cut.nodes)
        heavy = inside & (problem.shard_bytes >= cut.at_least_bytes)
        count = max(0, int(heavy.sum()) - int(capacity[cut.nodes].sum()))
        total += count * (cut.at_least_bytes - below)
    return total


def gap(problem: Problem, certificate: Certificate, answer: Assigned) -> Gap:
    """Optimum and ours. The answer must be for the certificate's makespan, or for a shorter one."""
    away = answer.tier != Tier.NODE_LOCAL
    return Gap(
        optimum_at_least=certificate.non_local_at_least,
        ours=int(away.sum()),
        moved_bytes_at_least=certificate.moved_bytes_at_least,
        moved_bytes=int(problem.shard_bytes[away].sum()),
    )


def sentences(
    problem: Problem,
    certificate: Certificate,
    answer: Assigned,
    names: int = 5,
    *,
    within: str | None = None,
    ranks: bool = False,
) -> tuple[str, ...]:
    """The certificate, its two sums, the gap, and the advice that falls out, as lines for a reader.

    `within`: the makespan in words, where it is not in seconds; `ranks`: every node is one rank of a gang, whatever its slots.
    """
    within = within or format_seconds(certificate.makespan_s)
    lines = (headline(problem, certificate, answer, within),)
    if not certificate.non_local_at_least:
        return (*lines, "every shard can be local: there is nothing to prove")
    return (
        *lines,
        proof(problem, certificate, names, within),
        *advice(problem, certificate, answer, within, ranks=ranks),
    )


def headline(problem: Problem, certificate: Certificate, answer: Assigned, within: str) -> str:
    """How local the answer is beside the optimum."""
    found = gap(problem, certificate, answer)
    return (
        f"{answer.policy}: {format_count(answer.local)} of {format_count(problem.shards)} shards local "
        f"({format_share(answer.local / max(problem.shards, 1))}) within {within}; "
        f"not local: ours {format_count(found.ours)}, optimum at least {format_count(found.optimum_at_least)}, "
        f"gap {format_count(found.shards)} shards, {format_bytes(found.moved_bytes - found.moved_bytes_at_least)}"
    )


def proof(problem: Problem, certificate: Certificate, names: int, within: str) -> str:
    """The two sums, that nobody has to believe."""
    some = ", ".join(problem.node_names[int(node)] for node in certificate.nodes[:names])
    more = f" and {format_count(len(certificate.nodes) - names)} more" if len(certificate.nodes) > names else ""
    one = len(certificate.nodes) == 1
    return (
        f"proof: all replicas of {format_count(certificate.enclosed)} shards lie on {format_count(len(certificate.nodes))} "
        f"{'node' if one else 'nodes'} ({some}{more}) that {'finishes' if one else 'finish'} "
        f"{format_count(certificate.capacity)} within {within}: "
        f"{format_count(certificate.enclosed)} - {format_count(certificate.capacity)} = "
        f"{format_count(certificate.non_local_at_least)} cannot be local"
    )


def advice(
    problem: Problem, certificate: Certificate, answer: Assigned, within: str, *, ranks: bool = False
) -> tuple[str, ...]:
    """What would make more shards local."""
    lines = []
    able = certificate.nodes[problem.rate[certificate.nodes] > 0]
    if able.size and ranks:
        more = min(len(able), certificate.non_local_at_least)
        lines.append(
            f"with a shard more on {'this rank' if len(able) == 1 else f'each of these {format_count(len(able))} ranks'}, "
            f"up to {format_count(more)} more can be local"
        )
    elif able.size:
        gains = problem.capacity(certificate.makespan_s)[able] / np.maximum(problem.slots[able], 1)
        low, high = int(gains.min()), int(np.ceil(gains.max()))
        each = f"{format_count(low)}" if low == high else f"{format_count(low)} to {format_count(high)}"
        lines.append(
            f"one more shard's worth of capacity on any of {_these(len(able), 'node')} makes one more shard local "
            f"(a further slot there finishes {each} shards within {within})"
        )
    away = np.flatnonzero(answer.tier != Tier.NODE_LOCAL)
    inside = np.zeros(problem.nodes, dtype=np.bool_)
    inside[certificate.nodes] = True
    movable = away[enclosed_by(problem, inside)[away]]
    spare = problem.capacity(certificate.makespan_s)[~inside].sum()
    if movable.size and spare:
        lines.append(
            f"a replica of {_these(len(movable), 'shard')} on a node outside those {format_count(len(certificate.nodes))} "
            f"saves {format_bytes(int(problem.shard_bytes[movable].sum()))} each time they are read"
        )
    return tuple(lines)


def _these(count: int, what: str) -> str:
    return f"this {what}" if count == 1 else f"these {format_count(count)} {what}s"
