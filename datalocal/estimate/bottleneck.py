"""How long a placement takes at least: the busiest node, link or rack uplink, everything else overlapped with it. Pure.

A lower bound, not a prediction: every task, transfer and link is assumed to be busy from the first second to the last.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from datalocal.placement.model import Tier
from datalocal.placement.problem import Assigned, Floats, Ints, Problem, nearness

_DOWN = len(Tier)
"""Farther than any tier."""
_HASH = 2654435761  # Knuth's multiplier: neighbouring shards read from different holders


@dataclass(frozen=True, slots=True, kw_only=True)
class Bottleneck:
    """Seconds that each kind of resource needs alone."""

    compute_seconds: float
    """Of the node that is done last."""
    link_seconds: float
    """Of the busiest node's link, in its busier direction; 0 when nothing is read over the network."""
    uplink_seconds: float
    """Of the busiest rack's uplink; 0 when no uplink is limited."""

    @property
    def seconds(self) -> float:
        """The longest of them."""
        return max(self.compute_seconds, self.link_seconds, self.uplink_seconds)

    @property
    def what(self) -> str:
        """Which resource that is: compute, links or uplinks."""
        named = {"compute": self.compute_seconds, "links": self.link_seconds, "uplinks": self.uplink_seconds}
        return max(named, key=lambda name: named[name])


def sources(problem: Problem, answer: Assigned) -> Ints:
    """[N] the node that each shard is read from: its own, else one of the nearest holders that are up; -1 where nobody has it."""
    holder = problem.replica_nodes
    near = nearness(problem, answer.node).astype(np.int64)
    near[~problem.alive[holder]] = _DOWN
    position = np.arange(len(holder), dtype=np.int64)
    mixed = (position * _HASH) & 0xFFF
    score = (near << 52) | (mixed << 40) | position  # the lowest score of a shard names its replica
    found = np.full(problem.shards, -1, dtype=np.int64)
    filled = np.flatnonzero(np.diff(problem.replica_offsets))
    if filled.size:
        best = np.minimum.reduceat(score, problem.replica_offsets[filled])
        usable = (best >> 52) < _DOWN
        found[filled[usable]] = holder[best[usable] & ((1 << 40) - 1)]
    return found


def bottleneck(
    problem: Problem,
    answer: Assigned,
    *,
    link_bytes_per_second: float | Floats,
    uplink_bytes_per_second: float | None = None,
) -> Bottleneck:
    """The bound for `answer`: full-duplex links, one rate for all nodes or [M], and uplinks of racks where they are limited."""
    source = sources(problem, answer)
    moved = np.flatnonzero((source != answer.node) & (source >= 0))
    sizes = problem.shard_bytes[moved]
    reader, sender = answer.node[moved], source[moved]
    link = max(
        _busiest(reader, sizes, problem.nodes, link_bytes_per_second),
        _busiest(sender, sizes, problem.nodes, link_bytes_per_second),
    )
    uplink = 0.0
    if uplink_bytes_per_second is not None:
        off = problem.rack[reader] != problem.rack[sender]
        racks = len(problem.rack_names)
        uplink = max(
            _busiest(problem.rack[reader[off]], sizes[off], racks),
            _busiest(problem.rack[sender[off]], sizes[off], racks),
        )
    return Bottleneck(
        compute_seconds=problem.makespan(answer.node),
        link_seconds=link,
        uplink_seconds=uplink / uplink_bytes_per_second if uplink_bytes_per_second else 0.0,
    )


def _busiest(places: npt.NDArray[np.integer], sizes: Ints, count: int, per_second: float | Floats = 1.0) -> float:
    return float((np.bincount(places, weights=sizes, minlength=count) / per_second).max(initial=0.0))
