"""Training gangs: which rows each rank uses, decided from the footers before the epoch. Pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise
from typing import TypeAlias

from datalocal.errors import PlacementError
from datalocal.placement.forest import to_forest
from datalocal.placement.model import Assignment


@dataclass(frozen=True, slots=True, kw_only=True)
class RankSlot:
    """A place for one rank: its number in the gang, its node, its number on that node."""

    rank: int
    node: str
    local_rank: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Selected rows `start:stop` of one row group (counted among the group's *selected* rows, in file order)."""

    shard: str
    group: int
    start: int
    stop: int
    sources: tuple[str, ...]
    """Nodes to read the shard from, best first."""

    @property
    def samples(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True, kw_only=True)
class RankShare:
    """What one rank uses in one epoch."""

    slot: RankSlot
    segments: tuple[Segment, ...]

    @property
    def samples(self) -> int:
        return sum(segment.samples for segment in self.segments)


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochPlan:
    """One epoch (or what is left of it) for a whole gang. Every rank makes exactly `steps` steps."""

    steps: int
    shares: tuple[RankShare, ...]
    """By rank."""

    @property
    def samples(self) -> int:
        return sum(share.samples for share in self.shares)

    def step_samples(self, step: int) -> tuple[int, ...]:
        """Samples of each rank in this step; differs by at most one between a rank's steps."""
        return tuple(
            (step + 1) * share.samples // self.steps - step * share.samples // self.steps for share in self.shares
        )


def plan_epoch(
    assignments: Sequence[Assignment], selected: Mapping[str, Sequence[int]], slots: Sequence[RankSlot], batch: int
) -> EpochPlan:
    """Divide the selected rows of one epoch over the ranks of a gang.

    `selected`: by shard key, selected rows of each row group. There are ceil(N / batch) steps; `batch` is split over the
    ranks as evenly as it goes into b_r, and rank r ends between b_r x (steps - 1) and b_r x steps rows, so that no step is
    above its batch and no rank runs dry. Row groups stay with their assignment; only what is out of bounds moves: first
    between the ranks of a node, then to nodes that hold a replica, and only then over the network (no more of it than
    must be). At most ranks - 1 row groups are divided beyond the whole ones. Deterministic.

    Raises PlacementError when no row is selected, or an assignment's node has no rank.
    """
    total = sum(sum(groups) for groups in selected.values())
    if not total or batch < 1 or not slots:
        raise PlacementError(
            f"an epoch of {total} rows from {len(selected)} shards, {len(slots)} ranks and batch {batch} has no step",
            "check `train.validation` (does it take every row?), the data set and `train.batch`",
        )
    division = _Division(assignments, selected, sorted(slots, key=lambda slot: slot.rank))
    steps = -(-total // batch)
    division.bound(batch, steps)
    for reach in Reach:
        division.even_out(reach)
    to_forest(division.amounts, division.distance)
    return EpochPlan(steps=steps, shares=division.shares())


class Reach(IntEnum):
    """How far a row may move from where it was assigned."""

    SAME_NODE = 0
    REPLICA = 1
    ANYWHERE = 2


Group: TypeAlias = tuple[str, int]
"""A row group: shard key and number."""


class _Division:
    """Which rank has how many rows of which row group, while it is being evened out. Ranks by position in `slots`."""

    def __init__(
        self, assignments: Sequence[Assignment], selected: Mapping[str, Sequence[int]], slots: Sequence[RankSlot]
    ) -> None:
        self.slots = slots
        self.home = {assignment.shard: assignment for assignment in assignments}
        self._ranks_of: dict[str, list[int]] = {}
        for position, slot in enumerate(slots):
            self._ranks_of.setdefault(slot.node, []).append(position)
        self._holders = {
            key: {row.node, *row.sources} if row.local else set(row.sources) for key, row in self.home.items()
        }
        self.amounts: dict[Group, dict[int, int]] = {}
        self.load = [0] * len(slots)
        self._on: list[dict[Group, None]] = [{} for _ in slots]
        """Row groups of each rank, in the order they came."""
        self._reachable: dict[tuple[int, Reach], list[int]] = {}
        self._low: list[int] = []
        self._high: list[int] = []
        for key in sorted(selected):
            for number, rows in enumerate(selected[key]):
                if rows:
                    self._add((key, number), self._first_rank(key), rows)

    def _first_rank(self, key: str) -> int:
        """The rank with the least so far on the node that the shard is assigned to."""
        if key not in self.home:
            raise PlacementError(f"the rows of {key} are selected, and no node is assigned to it")
        node = self.home[key].node
        if node not in self._ranks_of:
            raise PlacementError(
                f"{key} is assigned to {node}, which has no rank; ranks are on {', '.join(sorted(self._ranks_of))}"
            )
        return min(self._ranks_of[node], key=lambda rank: (self.load[rank], rank))

    def bound(self, batch: int, steps: int) -> None:
        """Fix how much each rank may have; those with the most rows get what does not divide evenly."""
        even, rest = divmod(batch, len(self.slots))
        fullest = sorted(range(len(self.slots)), key=lambda rank: (-self.load[rank], rank))
        share = [even] * len(self.slots)
        for rank in fullest[:rest]:
            share[rank] += 1
        self._low = [one * (steps - 1) for one in share]
        self._high = [one * steps for one in share]

    def distance(self, group: Group, rank: int) -> int:
        """Cost of a row of this group on this rank: 0 where it was assigned, 1 on another replica, dear over the network."""
        node = self.slots[rank].node
        if node == self.home[group[0]].node:
            return 0
        return 1 if node in self._holders[group[0]] else 1_000_000

    def even_out(self, reach: Reach) -> None:
        """Move rows within `reach` until every rank is within its bounds, or no path of moves leads there.

        What is above goes to who is below first, then to who has room; then who is below takes from who can spare.
        """
        ranks = range(len(self.slots))
        self._flow(
            reach,
            gives=lambda rank: self.load[rank] - self._high[rank],
            takes=lambda rank: self._low[rank] - self.load[rank],
        )
        self._flow(
            reach,
            gives=lambda rank: self.load[rank] - self._high[rank],
            takes=lambda rank: self._high[rank] - self.load[rank],
        )
        self._flow(
            reach,
            gives=lambda rank: self.load[rank] - self._low[rank],
            takes=lambda rank: self._low[rank] - self.load[rank],
        )
        assert reach is not Reach.ANYWHERE or all(self._low[r] <= self.load[r] <= self._high[r] for r in ranks)

    def _flow(self, reach: Reach, gives: Callable[[int], int], takes: Callable[[int], int]) -> None:
        """Augment along shortest paths of moves, as in a maximum flow: a move can be taken back by a later one."""
        for giver in sorted(range(len(self.slots)), key=lambda rank: (-gives(rank), rank)):
            while gives(giver) > 0:
                path = self._path(giver, reach, takes)
                if not path:
                    break
                hops = list(pairwise(path))
                amount = min(gives(giver), takes(path[-1]))
                amount = min([amount, *(self._movable(a, b, reach, amount) for a, b in hops)])
                for source, target in reversed(hops):
                    self._move(source, target, reach, amount)

    def _path(self, start: int, reach: Reach, takes: Callable[[int], int]) -> list[int]:
        came: dict[int, int] = {start: -1}
        queue = deque([start])
        while queue:
            rank = queue.popleft()
            for other in self._neighbours(rank, reach):
                if other in came:
                    continue
                came[other] = rank
                if takes(other) > 0:
                    path = [other]
                    while came[path[-1]] >= 0:
                        path.append(came[path[-1]])
                    return path[::-1]
                queue.append(other)
        return []

    def _neighbours(self, rank: int, reach: Reach) -> list[int]:
        """Ranks that can take something of this one, those of its own node first; remembered until its groups change."""
        known = self._reachable.get((rank, reach))
        if known is None:
            known = self._reachable[rank, reach] = self._find_neighbours(rank, reach)
        return known

    def _find_neighbours(self, rank: int, reach: Reach) -> list[int]:
        own = self.slots[rank].node
        if reach is Reach.ANYWHERE:
            nodes = set(self._ranks_of) if self._on[rank] else set()
        elif reach is Reach.REPLICA:
            nodes = set().union(
                *({*self._holders[key], self.home[key].node} for key in {key for key, _ in self._on[rank]})
            )
        else:
            nodes = {own} if self._on[rank] else set()
        ordered = sorted(nodes & set(self._ranks_of), key=lambda node: (node != own, node))
        return [other for node in ordered for other in self._ranks_of[node] if other != rank]

    def _may_go(self, group: Group, source: int, target: int, reach: Reach) -> bool:
        node = self.slots[target].node
        if reach is Reach.ANYWHERE or node == self.slots[source].node:
            return True
        return reach is Reach.REPLICA and (node in self._holders[group[0]] or node == self.home[group[0]].node)

    def _movable(self, source: int, target: int, reach: Reach, enough: int) -> int:
        """Rows that may go from one rank to the other, counted up to `enough`."""
        found = 0
        for group in self._on[source]:
            if found >= enough:
                break
            if self._may_go(group, source, target, reach):
                found += self.amounts[group][source]
        return min(found, enough)

    def _move(self, source: int, target: int, reach: Reach, amount: int) -> None:
        """Move `amount` rows: what came from there goes back first, then whole groups, and one is divided for the rest."""
        groups = [group for group in self._on[source] if self._may_go(group, source, target, reach)]
        groups.sort(key=lambda group: self.distance(group, target) - self.distance(group, source))
        for group in groups:
            if amount and self.amounts[group][source] <= amount:
                amount -= self._shift(group, source, target, self.amounts[group][source])
        for group in groups:
            if amount and group in self._on[source]:
                amount -= self._shift(group, source, target, min(amount, self.amounts[group][source]))

    def _shift(self, group: Group, source: int, target: int, rows: int) -> int:
        self.load[source] -= rows
        self.amounts[group][source] -= rows
        if not self.amounts[group][source]:
            del self.amounts[group][source], self._on[source][group]
            self._forget(source)
        self._add(group, target, rows)
        return rows

    def _forget(self, rank: int) -> None:
        for reach in Reach:
            self._reachable.pop((rank, reach), None)

    def _add(self, group: Group, rank: int, rows: int) -> None:
        places = self.amounts.setdefault(group, {})
        places[rank] = places.get(rank, 0) + rows
        self._on[rank][group] = None
        self._forget(rank)
        self.load[rank] += rows

    def shares(self) -> tuple[RankShare, ...]:
        """The division as values: within a group the ranks' rows follow each other in order of rank."""
        segments: list[list[Segment]] = [[] for _ in self.slots]
        for group in sorted(self.amounts):
            start = 0
            for rank, rows in sorted(self.amounts[group].items()):
                segments[rank].append(
                    Segment(
                        shard=group[0],
                        group=group[1],
                        start=start,
                        stop=start + rows,
                        sources=self._sources(group[0], self.slots[rank].node),
                    )
                )
                start += rows
        return tuple(RankShare(slot=slot, segments=tuple(segments[rank])) for rank, slot in enumerate(self.slots))

    def _sources(self, key: str, node: str) -> tuple[str, ...]:
        sources = self.home[key].sources
        return (node, *(name for name in sources if name != node)) if node in sources else sources
