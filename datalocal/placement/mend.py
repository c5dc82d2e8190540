"""Exact repair of an optimal assignment when a node is lost or comes back: milliseconds, and as few moves as possible. Pure.

Successive shortest paths (Ahuja, Magnanti, Orlin, Network Flows, 1993, ch. 9.7) on the graph of nodes of `waves`, where a
step costs 1 when it takes a shard from where it was before the repair, -1 when it brings it back, 0 otherwise. Potentials
keep costs from being negative, and only the neighbourhood of the change is looked at. (`repair` is another thing: it
re-places what is left of a running stage, with outputs and sources, and promises no optimum.)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from datalocal.errors import PlacementError
from datalocal.placement.flow import near, pour, reached
from datalocal.placement.model import Tier
from datalocal.placement.problem import Assigned, Ints, Mask, Nodes, Problem, Reason, assigned
from datalocal.placement.shortest import UNSEEN, Search
from datalocal.placement.waves import NOWHERE, Index

LEAVING = 1 << 30
"""The price of one shard less that is local; moves cost 1."""
FEW = 4
"""From so many nodes steps are taken one by one, by what the repair remembers of each; from more of them in one go."""
Nearby: TypeAlias = dict[int, tuple[list[int], list[int], list[int]]]
"""The steps out of one node: by the node that they lead to, the shards that cost -1, 0 and 1; also some that have left."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Mended:
    """What one repair changed: `shard` [K] went from `before` [K] to `after` [K]."""

    shard: Ints
    before: Nodes
    after: Nodes
    non_local: int
    """Shards that are not local now: no placement has fewer, and the sums over `cut` prove it."""
    cut: Mask
    """[M] nodes; all replicas of capacity(cut) + non_local shards lie there."""


class Mender:
    """An optimal assignment with the index that makes its repair fast: half a second to build for 1,000,000 shards."""

    def __init__(self, problem: Problem, answer: Assigned) -> None:
        """`answer` must have as many local shards as can be (`optimal-bytes`); ValueError when it has not."""
        self._problem, self._policy, self._makespan_s = problem, answer.policy, answer.makespan_s
        self._index = Index.of(problem.replica_offsets, problem.replica_nodes, problem.nodes)
        self._node = answer.node.astype(np.int32).copy()
        self._local = answer.tier == Tier.NODE_LOCAL
        self._alive = problem.alive.copy()
        capacity = problem.capacity(answer.makespan_s)
        self._free = capacity - np.bincount(self._node, minlength=problem.nodes)
        away = np.flatnonzero(~self._local)
        self._guests: dict[int, set[int]] = {}
        for shard, node in zip(away.tolist(), self._node[away].tolist(), strict=True):
            self._guests.setdefault(node, set()).add(shard)
        self._non_local = len(away)
        self._closed = reached(self._index, self._at_home(), away)
        if (np.bincount(self._node[self._local], minlength=problem.nodes) < capacity)[self._closed].any():
            raise ValueError(f"{answer.policy} moves shards that could be local: repair starts from an optimum")
        self._origin = np.full(problem.shards, NOWHERE, dtype=np.int32)
        self._touched: list[int] = []
        self._stranded = np.zeros_like(self._closed)
        self._toll = np.zeros(problem.nodes, dtype=np.int64)
        self._potential = np.zeros(problem.nodes, dtype=np.int64)
        self._movers = np.zeros(problem.nodes, dtype=np.int64)
        self._used = capacity - self._free
        self._nearby: dict[int, Nearby] = {}
        self._asked: set[int] = set()
        self._search = Search(self._potential)

    @property
    def problem(self) -> Problem:
        """The problem as it is now: who is up."""
        return replace(self._problem, alive=self._alive.copy())

    @property
    def answer(self) -> Assigned:
        """The assignment as it is now."""
        return assigned(
            self.problem, self._node, policy=self._policy, makespan_s=self._makespan_s, why=Reason.HOLDERS_FULL
        )

    def lose(self, node: int) -> Mended:
        """`node` is gone. PlacementError when the others cannot finish within T; then nothing has changed."""
        name = self._problem.node_names[node]
        if not self._alive[node]:
            raise PlacementError(f"{name} is down already")
        local = self._members(node)
        guests = sorted(self._guests.get(node, ()))
        short = len(local) + len(guests) - int(self._free.sum() - self._free[node])
        if short > 0:
            raise PlacementError(
                f"without {name}, {short:,} shards find no room within {self._makespan_s:g} s",
                f"plan again with a makespan of at least {self.problem.without(node).least_makespan()!r} s",
            )
        self._begin()
        self._alive[node], self._free[node] = False, 0
        for shard in [*local, *guests]:
            self._take(shard)
        homeless = guests
        for shard in local:
            leaving = self._rehome(shard)
            if leaving != NOWHERE:
                homeless.append(leaving)
        self._lodge(homeless)
        self._closed |= self._stranded
        return self._end()

    def regain(self, node: int) -> Mended:
        """`node` is up again, with the replicas that the problem says it has."""
        if self._alive[node]:
            raise PlacementError(f"{self._problem.node_names[node]} is up already")
        self._begin()
        self._alive[node] = True
        self._free[node] = self.problem.capacity(self._makespan_s)[node]
        away = np.flatnonzero(~self._local)
        waiting = np.bincount(self._index.holders_of(away)[0], minlength=self._problem.nodes)
        while self._free[node] > 0 and self._bring_home(node, waiting):
            self._non_local -= 1
        self._closed = reached(self._index, self._at_home(), np.flatnonzero(~self._local))
        return self._end()

    def _at_home(self) -> Nodes:
        return np.where(self._local, self._node, NOWHERE).astype(np.int32)

    def _set_toll(self, node: int) -> None:
        """What it costs to stop at `node`: nothing where there is room, one move of a guest, or one shard less that is local."""
        if self._free[node] > 0:
            toll = 0
        elif self._used[node] == 0:
            toll = UNSEEN
        elif self._guests.get(node):
            toll = 1
        else:
            toll = LEAVING + (self._movers[node] == 0)
        self._toll[node] = toll

    def _members(self, node: int) -> list[int]:
        held, _ = self._index.shards_on(np.array([node]))
        found: list[int] = held[self._node[held] == node].tolist()
        return found

    def _begin(self) -> None:
        self._origin[self._touched] = NOWHERE
        self._touched = []
        self._potential[:] = 0
        self._movers[:] = 0
        self._onward: dict[int, int] = {}
        self._nearby.clear()
        self._asked.clear()
        self._toll = np.where(self._used == 0, UNSEEN, LEAVING + 1)
        self._toll[[node for node, guests in self._guests.items() if guests]] = 1
        self._toll[self._free > 0] = 0
        self._stranded = np.zeros_like(self._closed)

    def _end(self) -> Mended:
        touched = np.array(sorted(self._touched), dtype=np.int64)
        moved = touched[self._node[touched] != self._origin[touched]]
        return Mended(
            shard=moved,
            before=self._origin[moved],
            after=self._node[moved],
            non_local=self._non_local,
            cut=self._closed.copy(),
        )

    def _take(self, shard: int) -> None:
        """Take a shard off its node; where it was when the repair began is remembered."""
        node = int(self._node[shard])
        self._used[node] -= 1
        if self._origin[shard] == NOWHERE:
            self._origin[shard] = node
            self._touched.append(shard)
        elif self._local[shard] and self._origin[shard] != node:
            self._movers[node] -= 1
        if self._alive[node]:
            self._free[node] += 1
        if not self._local[shard]:
            self._guests[node].discard(shard)
        self._node[shard], self._local[shard] = NOWHERE, False
        self._set_toll(node)

    def _give(self, shard: int, node: int, *, local: bool) -> None:
        self._node[shard], self._local[shard] = node, local
        self._free[node] -= 1
        self._used[node] += 1
        if local:
            self._movers[node] += self._origin[shard] != node
            if node in self._nearby:
                self._remember(self._nearby[node], shard, node)
        else:
            self._guests.setdefault(node, set()).add(shard)
        self._set_toll(node)

    def _rehome(self, shard: int) -> int:
        """Make an orphan local by the shortest chain of moves; returns who has no node after that, or NOWHERE.

        That is a guest who made room; or, where no room can be made, the shard whose leaving costs the fewest moves:
        the orphan itself, or one at the end of a chain that takes back earlier moves.
        """
        holders = self._index.row(shard)
        # Nodes that are down take part: nothing leads on from them, and they belong to the proof when nothing is found.
        holders = holders[~self._closed[holders]]
        free = holders[self._toll[holders] == 0]
        if free.size:  # no way is shorter; potentials of nodes with room are 0
            self._give(shard, int(free[0]), local=True)
            return NOWHERE
        if not holders.size:
            self._non_local += 1
            return shard
        found = self._trodden(holders)
        if found is None:
            search = self._search
            search.begin(holders)
            end, price = search.run(self._steps_out, self._toll, at_most=LEAVING, few=self._cheapest_steps)
            if price >= LEAVING - len(self._toll):
                self._stranded |= search.seen
                self._non_local += 1
            if end == NOWHERE:
                return shard
            found = end, search.chain(end)
        return self._follow(shard, *found)

    def _follow(self, shard: int, end: int, chain: list[tuple[int, int, int]]) -> int:
        """Move the shards of the chain (last step first) and put `shard` at its beginning; returns who has no node now."""
        leaving = NOWHERE
        if self._toll[end]:
            leaving = min(self._guests[end]) if self._guests.get(end) else self._least_missed(end)
            self._take(leaving)
        start = end
        for before, moved, there in chain:
            self._take(moved)
            self._give(moved, there, local=True)
            self._onward[before] = there
            start = before
        self._give(shard, start, local=True)
        return leaving

    def _trodden(self, holders: Nodes) -> tuple[int, list[tuple[int, int, int]]] | None:
        """A way that an earlier shard went, with other shards, when it still costs nothing above the potentials.

        Then it is a shortest one, without a search: no way from `holders` costs less than the least of their potentials.
        """
        highest = self._potential[holders]
        ways = (self._way_from(node) for node in holders[highest == highest.max()].tolist())
        return next((way for way in ways if way), None)

    def _way_from(self, node: int) -> tuple[int, list[tuple[int, int, int]]] | None:
        """Along `_onward` to where the search would stop, as long as every step costs exactly what potentials say."""
        potential = self._potential
        chain: list[tuple[int, int, int]] = []
        while self._toll[node] + potential[node] != 0:
            if len(chain) == len(self._onward) or node not in self._onward:
                return None
            there = self._onward[node]
            # No step costs less than potentials say: the cheapest one does, or none.
            step = self._cheapest_step(node, there)
            if step is None or step[1] != potential[there] - potential[node]:
                return None
            chain.append((node, step[0], there))
            node = there
        if self._toll[node] >= LEAVING:
            return None
        return node, chain[::-1]

    def _least_missed(self, node: int) -> int:
        """A local shard of `node`, one that has been moved to it if there is one; one that is back where it was is not."""
        local = self._members(node)
        return min(local, key=lambda shard: (self._origin[shard] in (NOWHERE, node), shard))

    def _bring_home(self, node: int, waiting: Ints) -> bool:
        """Use a free place on `node` to make one more shard local, if any can be; `waiting` [M] counts who could."""
        search = self._search
        search.begin(np.array([node]))
        toll = np.where((waiting > 0) & self._alive, 0, UNSEEN)
        end, _ = search.run(self._steps_in, toll, at_most=UNSEEN)
        if end == NOWHERE:
            return False
        held, _ = self._index.shards_on(np.array([end]))
        shard = int(held[~self._local[held]].min())
        for target, moved, _source in reversed(search.chain(end)):
            self._take(moved)
            self._give(moved, target, local=True)
        self._take(shard)
        self._give(shard, end, local=True)
        waiting -= np.bincount(self._index.holders_of(np.array([shard]))[0], minlength=len(waiting))
        return True

    def _steps_out(self, nodes: Ints) -> tuple[Ints, Nodes, Nodes, Ints]:
        """Moves of local shards from `nodes`: position in `nodes`, shard, node it leads to, cost."""
        shards, which = self._index.shards_on(nodes)
        here = self._node[shards] == nodes[which]
        shards, which = shards[here], which[here]
        target, of = self._index.holders_of(shards)
        shards, which = shards[of], which[of]
        good = ~self._closed[target] & (target != nodes[which])
        target, shards, which = target[good], shards[good], which[good]
        return which, shards, target, self._cost(shards, nodes[which], target)

    def _steps_in(self, nodes: Ints) -> tuple[Ints, Nodes, Nodes, Ints]:
        """Moves of local shards to `nodes`: position in `nodes`, shard, node it comes from, cost."""
        shards, which = self._index.shards_on(nodes)
        source = self._node[shards]
        good = self._local[shards] & (source != nodes[which]) & self._closed[source]
        source, shards, which = source[good], shards[good], which[good]
        return which, shards, source, self._cost(shards, source, nodes[which])

    def _steps_near(self, node: int) -> Nearby:
        """The steps out of `node`; read from its shards once in a repair, and kept up to date by `_give`."""
        if node not in self._nearby:
            shards, target, cost = self._steps_out(np.array([node]))[1:]
            found: Nearby = {}
            for shard, there, price in zip(shards.tolist(), target.tolist(), cost.tolist(), strict=True):
                found.setdefault(there, ([], [], []))[price + 1].append(shard)
            self._nearby[node] = found
        return self._nearby[node]

    def _remember(self, nearby: Nearby, shard: int, node: int) -> None:
        """Add the steps of a shard that has come to `node`. What it costs does not change as long as the repair lasts."""
        origin = int(self._origin[shard])
        for there in self._index.row(shard).tolist():
            if there != node and not self._closed[there]:
                price = (there != origin) - (node != origin)
                nearby.setdefault(there, ([], [], []))[price + 1].append(shard)

    def _cheapest_step(self, node: int, there: int) -> tuple[int, int] | None:
        """The shard that moves from `node` to `there` for the least cost, and the cost. Shards that have left are forgotten."""
        by_cost = self._steps_near(node).get(there, ())
        for price, shards in enumerate(by_cost, start=-1):
            while shards and self._node[shards[-1]] != node:
                shards.pop()
            if shards:
                return shards[-1], price
        return None

    def _cheapest_steps(self, nodes: list[int]) -> Iterator[tuple[int, int, int, int]] | None:
        """The steps from `nodes`, the cheapest to each other node; None where it is quicker to read them all at once.

        That is so for many nodes, and for those that are asked for the first time: most of them never are again.
        """
        again = self._asked.issuperset(nodes)
        self._asked.update(nodes)
        if len(nodes) > FEW or not again:
            return None
        ways = ((node, there) for node in nodes for there in self._steps_near(node))
        return ((*way, *step) for way in ways if (step := self._cheapest_step(*way)))

    def _cost(
        self, shards: npt.NDArray[np.integer], source: npt.NDArray[np.integer], target: npt.NDArray[np.integer]
    ) -> Ints:
        origin = self._origin[shards]
        origin = np.where(origin == NOWHERE, source, origin)
        return np.asarray((target != origin).astype(np.int64) - (source != origin))

    def _lodge(self, homeless: list[int]) -> None:
        """Give those who cannot be local the room that is left, where it is done first, in a rack of theirs if possible."""
        if not homeless:
            return
        shards = np.array(sorted(homeless), dtype=np.int64)
        rate = np.where(self._alive, self._problem.slots * self._problem.speed, 0.0)
        room = pour(self._used, self._used + self._free, rate, len(shards))
        placed = near(self._problem, shards, room, self._alive)
        for shard, node in zip(shards.tolist(), placed.tolist(), strict=True):
            self._give(shard, node, local=False)
