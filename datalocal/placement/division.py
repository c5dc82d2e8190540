"""The rows of one epoch, divided over the ranks of a gang. Pure.

Every rank has a range of rows within which it makes the same steps as the others. Rows leave the ranks that have too many for
those that have too few as a maximum flow: over rows that may move, from the rank that has them to the nodes that hold a replica.
What that flow cannot even out is the least that has to be read over the network.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from datalocal.errors import PlacementError
from datalocal.placement.forest import to_forest
from datalocal.placement.gang import EpochPlan, RankShare, RankSlot, Segment
from datalocal.placement.model import Assignment
from datalocal.placement.quota import Mixes, spread

Group: TypeAlias = tuple[str, int]
"""A row group: shard key and number."""
Ints: TypeAlias = npt.NDArray[np.int64]

_MOST = 2**31 - 1  # scipy's maximum_flow works on int32 capacities


def plan_epoch(
    assignments: Sequence[Assignment],
    selected: Mapping[str, Sequence[int]],
    slots: Sequence[RankSlot],
    batch: int,
    mixes: Mixes | None = None,
    *,
    together: bool = True,
) -> EpochPlan:
    """Divide the selected rows of one epoch over the ranks of a gang.

    `selected`: by shard key, selected rows of each row group. There are ceil(N / batch) steps; `batch` is split over the
    ranks as evenly as it goes into b_r, and rank r ends between b_r x (steps - 1) and b_r x steps rows, so that no step is
    above its batch and no rank runs dry. Row groups stay with their assignment; only what is out of bounds moves: first
    between the ranks of a node, then to nodes that hold a replica, and only then over the network (no more of it than
    must be). At most ranks - 1 row groups are divided beyond the whole ones. Deterministic. With `mixes`, row groups begin on
    those of their holders that bring each rank's labels nearest to those of all (`quota`).

    Ranks that need not go `together` (validation waits for nobody within it) are evened out as well, but no row that a rank has
    on its own node is read over the network for that; there are then as many steps as the rank with the most rows needs.

    Raises PlacementError when no row is selected, or an assignment's node has no rank.
    """
    total = sum(sum(groups) for groups in selected.values())
    if not total or batch < 1 or not slots:
        raise PlacementError(
            f"an epoch of {total} rows from {len(selected)} shards, {len(slots)} ranks and batch {batch} has no step",
            "check `train.validation` (does it take every row?), the data set and `train.batch`",
        )
    division = _Division(assignments, selected, sorted(slots, key=lambda slot: slot.rank))
    if mixes is not None:
        division.mix(mixes)
    steps = -(-total // batch)
    division.bound(batch, steps, together=together)
    division.even_out(at_all_costs=together)
    division.make_whole()
    return EpochPlan(steps=steps if together else max(steps, division.steps(steps)), shares=division.shares())


def able_ranks(assignments: Iterable[Assignment], slots: Sequence[RankSlot]) -> dict[str, list[int]]:
    """By shard key: ranks on nodes that hold the shard; of one that is not worked on where it lies, those of its node."""
    on: dict[str, list[int]] = {}
    for position, slot in enumerate(slots):
        on.setdefault(slot.node, []).append(position)
    return {
        each.shard: [rank for node in (each.sources if each.local else (each.node,)) for rank in on.get(node, ())]
        for each in assignments
    }


class _Division:
    """Which rank has how many rows of which row group, while it is being evened out. Ranks by position in `slots`."""

    def __init__(
        self, assignments: Sequence[Assignment], selected: Mapping[str, Sequence[int]], slots: Sequence[RankSlot]
    ) -> None:
        self.slots = slots
        self._home = {assignment.shard: assignment for assignment in assignments}
        self._ranks_of: dict[str, list[int]] = {}
        for position, slot in enumerate(slots):
            self._ranks_of.setdefault(slot.node, []).append(position)
        self._nodes = list(self._ranks_of)
        self._selected = selected
        self._amounts: dict[Group, dict[int, int]] = {}
        self._on: list[dict[Group, None]] = [{} for _ in slots]
        """Row groups of each rank, in the order they came."""
        self._load = np.zeros(len(slots), dtype=np.int64)
        self._low = self._high = self._load
        self._fill()

    def _fill(self) -> None:
        """Every row group to the rank with the least so far on the node that its shard is assigned to."""
        load = [0] * len(self.slots)
        for key in sorted(self._selected):
            if not any(self._selected[key]):
                continue
            ranks = self._ranks_at_home(key)
            for number, rows in enumerate(self._selected[key]):
                if rows:
                    rank = ranks[0] if len(ranks) == 1 else min(ranks, key=load.__getitem__)
                    self._amounts[key, number] = {rank: rows}
                    self._on[rank][key, number] = None
                    load[rank] += rows
        self._load = np.array(load, dtype=np.int64)

    def mix(self, mixes: Mixes) -> None:
        """Every row group to a rank that holds it, so that the ranks' labels are alike. Comes before `bound`."""
        groups = list(self._amounts)
        at = [next(iter(self._amounts[group])) for group in groups]
        rows = [self._amounts[group][rank] for group, rank in zip(groups, at, strict=True)]
        able = able_ranks([self._home[key] for key, _ in groups], self.slots)
        sized = [(key, count) for (key, _), count in zip(groups, rows, strict=True)]
        for group, source, target, count in zip(
            groups, at, spread(sized, at, able, mixes, len(self.slots)), rows, strict=True
        ):
            self._amounts[group] = {target: count}
            del self._on[source][group]
            self._on[target][group] = None
            self._load[source] -= count
            self._load[target] += count

    def _ranks_at_home(self, key: str) -> list[int]:
        if key not in self._home:
            raise PlacementError(f"the rows of {key} are selected, and no node is assigned to it")
        node = self._home[key].node
        if node not in self._ranks_of:
            raise PlacementError(
                f"{key} is assigned to {node}, which has no rank; ranks are on {', '.join(sorted(self._ranks_of))}"
            )
        return self._ranks_of[node]

    def bound(self, batch: int, steps: int, *, together: bool = True) -> None:
        """Fix how much each rank may have; those with the most rows get what does not divide evenly.

        Only ranks that go `together` must have a least number, too.
        """
        even, rest = divmod(batch, len(self.slots))
        share = np.full(len(self.slots), even, dtype=np.int64)
        share[np.argsort(-self._load, kind="stable")[:rest]] += 1
        self._low, self._high = share * (steps - 1 if together else 0), share * steps

    def steps(self, planned: int) -> int:
        """Steps that the busiest rank makes, none above the batch that it was to have with so many as `planned`."""
        return int((-(-self._load // np.maximum(self._high // planned, 1))).max())

    def even_out(self, *, at_all_costs: bool = True) -> None:
        """Move rows until every rank is within its bounds: in the node, then to other holders, then anywhere.

        Not `at_all_costs`: only those go anywhere that are read over the network as it is.
        """
        if self._out_of_bounds() and len(self._nodes) < len(self.slots):
            own = np.array([self._nodes.index(slot.node) for slot in self.slots])
            self._flow(np.arange(len(self.slots)), self._load, [own[[rank]] for rank in range(len(self.slots))], None)
        if self._out_of_bounds():
            items = sorted(
                {(rank, key) for (key, _), places in self._amounts.items() for rank in places},
            )
            rows: dict[tuple[int, str], int] = dict.fromkeys(items, 0)
            for (key, _), places in self._amounts.items():
                for rank, count in places.items():
                    rows[rank, key] += count
            number = {name: i for i, name in enumerate(self._nodes)}
            reach = [
                np.array(sorted({number[name] for name in self._holders(key) if name in number}), dtype=np.int64)
                for _, key in items
            ]
            ranks = np.array([rank for rank, _ in items], dtype=np.int64)
            self._flow(ranks, np.array([rows[item] for item in items]), reach, [key for _, key in items])
        self._over_the_network(at_all_costs=at_all_costs)

    def _out_of_bounds(self) -> bool:
        return bool(((self._load > self._high) | (self._load < self._low)).any())

    def _holders(self, key: str) -> tuple[str, ...]:
        home = self._home[key]
        return (home.node, *home.sources)

    def _flow(self, ranks: Ints, rows: Ints, reach: Sequence[Ints], keys: Sequence[str] | None) -> None:
        """Move as many rows as help. Item i are `rows[i]` rows of `ranks[i]` that may go to any of the nodes `reach[i]`;
        `keys[i]` is their shard, or None where an item is everything that the rank has."""
        sent, received = _max_flow(self._load, self._low, self._high, self._ranks_by_node(), ranks, rows, reach)
        wanted: dict[int, list[list[int]]] = {}
        for node, rank, amount in received:
            wanted.setdefault(node, []).append([rank, amount])
        for item, node, amount in sent:
            left = amount
            while left:
                taker = wanted[node][-1]
                some = min(left, taker[1])
                self._move(int(ranks[item]), taker[0], None if keys is None else keys[item], some)
                left -= some
                taker[1] -= some
                if not taker[1]:
                    wanted[node].pop()

    def _ranks_by_node(self) -> list[list[int]]:
        return [self._ranks_of[node] for node in self._nodes]

    def _over_the_network(self, *, at_all_costs: bool) -> None:
        """What is left: from who has too much, or can spare, to who has too little, or has room."""
        over, under = np.maximum(self._load - self._high, 0), np.maximum(self._low - self._load, 0)
        missing = int(under.sum() - over.sum())
        spare = np.minimum(self._load, self._high) - self._low
        room = self._high - np.maximum(self._load, self._low)
        gives = over + _first(np.maximum(spare, 0), max(missing, 0))
        takes = under + _first(np.maximum(room, 0), max(-missing, 0))
        takers = [[rank, int(takes[rank])] for rank in np.flatnonzero(takes)[::-1].tolist()]
        for giver in np.flatnonzero(gives).tolist():
            left = int(gives[giver])
            if not at_all_costs:
                left = min(
                    left, sum(self._amounts[group][giver] for group in self._on[giver] if self._away(group, giver))
                )
            while left and takers:
                some = min(left, takers[-1][1])
                self._move(giver, takers[-1][0], None, some, only_away=not at_all_costs)
                left -= some
                takers[-1][1] -= some
                if not takers[-1][1]:
                    takers.pop()

    def _move(self, source: int, target: int, key: str | None, amount: int, *, only_away: bool = False) -> None:
        """Move `amount` rows (of one shard): whole row groups as far as they fit, then a part of one.

        Row groups that the rank reads over the network anyway go first.
        """
        if source == target or not amount:
            return
        self._load[source] -= amount
        self._load[target] += amount
        groups = self._groups_of(source, key)
        if only_away:
            groups = [group for group in groups if self._away(group, source)]
        for whole in (True, False):
            for group in groups:
                places = self._amounts[group]
                has = places.get(source, 0)
                some = min(has, amount)
                if not some or (whole and has > amount):
                    continue
                amount -= some
                places[target] = places.get(target, 0) + some
                places[source] = has - some
                self._on[target][group] = None
                if has == some:
                    del places[source], self._on[source][group]
                if not amount:
                    return

    def _groups_of(self, rank: int, key: str | None) -> list[Group]:
        if key is not None:
            return [(key, number) for number in range(len(self._selected[key])) if (key, number) in self._amounts]
        return sorted(self._on[rank], key=lambda group: not self._away(group, rank))

    def _away(self, group: Group, rank: int) -> bool:
        """Whether this rank reads it over the network."""
        return self.slots[rank].node not in self._home[group[0]].sources

    def make_whole(self) -> None:
        """Undo divisions of row groups that only go around in a circle."""
        divided = {group: places for group, places in self._amounts.items() if len(places) > 1}
        to_forest(divided, self._distance)
        self._amounts |= divided

    def _distance(self, group: Group, rank: int) -> int:
        """Cost of a row of this group on this rank: 0 where it was assigned, 1 on another replica, dear over the network."""
        node, home = self.slots[rank].node, self._home[group[0]]
        if node == home.node:
            return 0
        return 1 if node in home.sources else 1_000_000

    def shares(self) -> tuple[RankShare, ...]:
        """The division as values: within a group the ranks' rows follow each other in order of rank."""
        segments: list[list[Segment]] = [[] for _ in self.slots]
        for group in sorted(self._amounts):
            start = 0
            for rank, rows in sorted(self._amounts[group].items()):
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
        sources = self._home[key].sources
        if sources and sources[0] == node:
            return sources
        return (node, *(name for name in sources if name != node)) if node in sources else sources


def _first(room: Ints, wanted: int) -> Ints:
    """How much of each `room` is taken when the first ones are filled until nothing more is wanted."""
    before = np.cumsum(room) - room
    return np.asarray(np.clip(wanted - before, 0, room))


def _max_flow(
    load: Ints,
    low: Ints,
    high: Ints,
    ranks_on: Sequence[Sequence[int]],
    ranks: Ints,
    rows: Ints,
    reach: Sequence[Ints],
) -> tuple[list[tuple[int, int, int]], list[tuple[int, int, int]]]:
    """[(item, node, rows)] to move and [(node, rank, rows)] that arrive, so that as few ranks' rows as can be stay out of bounds.

    Vertices: ranks, items (rows of one rank that may go to the same nodes), nodes, and a hub. What a rank has above `high`
    comes from the source, what it lacks to `low` goes to the sink. Ranks within their bounds may take up to `high` or give down
    to `low`: through the hub, which balances what is above against what is lacking.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import maximum_flow

    count, items, nodes = len(load), len(ranks), len(ranks_on)
    first_item, first_node = count, count + items
    hub, source, sink = (count + items + nodes + i for i in range(3))
    over, under = np.maximum(load - high, 0), np.maximum(low - load, 0)
    room = high - np.clip(load, low, high)
    spare = np.clip(load, low, high) - low
    missing = int(under.sum() - over.sum())
    every = np.arange(count)
    lengths = np.array([len(goals) for goals in reach], dtype=np.int64)
    item = np.repeat(np.arange(items), lengths)
    goal = np.concatenate(reach) if items else np.empty(0, np.int64)
    on_node = np.repeat(np.arange(nodes), [len(those) for those in ranks_on])
    arcs: list[tuple[Ints, Ints, Ints]] = [
        (np.full(count, source), every, over),
        (every, np.full(count, sink), under),
        (every, np.full(count, hub), room),
        (np.full(count, hub), every, spare),
        (np.array([source]), np.array([hub]), np.array([max(missing, 0)])),
        (np.array([hub]), np.array([sink]), np.array([max(-missing, 0)])),
        (ranks, first_item + np.arange(items), rows),
        (first_item + item, first_node + goal, rows[item]),
        (first_node + on_node, np.array([rank for those in ranks_on for rank in those]), np.full(count, load.sum())),
    ]
    tail, head, capacity = (np.concatenate([arc[part] for arc in arcs]) for part in range(3))
    used = capacity > 0
    table = coo_array(
        (np.minimum(capacity[used], _MOST).astype(np.int32), (tail[used], head[used])), shape=(sink + 1, sink + 1)
    )
    found = maximum_flow(table.tocsr(), source, sink).flow.tocoo()
    moved = found.data > 0
    a, b, amount = found.row[moved], found.col[moved], found.data[moved]
    sent = (a >= first_item) & (a < first_node)
    arrived = (a >= first_node) & (a < hub)
    return (
        _triples(a[sent] - first_item, b[sent] - first_node, amount[sent]),
        _triples(a[arrived] - first_node, b[arrived], amount[arrived]),
    )


def _triples(*columns: npt.NDArray[np.integer]) -> list[tuple[int, int, int]]:
    rows: Iterable[tuple[int, int, int]] = zip(*(column.tolist() for column in columns), strict=True)
    return list(rows)
