"""How many rows a growing gang uses where they lie, when no node uses more than its quota: a maximum flow, node by node. Pure.

Rows flow from shards to those nodes of the gang that hold them. How much can flow is monotone and submodular in the set of nodes
(the rank of a polymatroid, induced through the bipartite graph of replicas): a node never adds more later than it would have
added before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from datalocal.placement.csr import spans
from datalocal.placement.problem import Ints, Problem


class GangFlow:
    """The rows that the nodes added so far use, and of which shards. N shards, M nodes, R replicas."""

    def __init__(self, problem: Problem, quota_rows: int) -> None:
        self.local_rows = 0
        """Rows used on a node that holds them: as many as the nodes added so far can."""
        self.covered_rows = 0
        """Rows of the shards that one of the nodes added so far holds."""
        self._quota = quota_rows
        self._offsets, self._holder = problem.replica_offsets, problem.replica_nodes
        held = np.bincount(self._holder, minlength=problem.nodes)
        self._node_offsets = np.concatenate(([0], np.cumsum(held)))
        self._entry_on = np.argsort(self._holder, kind="stable")  # [R] replicas, node by node
        self._shard_on = problem.owner[self._entry_on]  # [R] and their shards, ascending on each node
        self._left = problem.shard_rows.copy()  # [N] rows that nobody uses
        self._used = np.zeros(len(self._holder), dtype=np.int64)  # [R] rows of this shard that this holder uses
        self._uncovered = problem.shard_rows.copy()  # [N] rows that nobody holds
        # [M] Nodes from whose shards no way leads to a row that nobody uses. There will never be one: such rows only get fewer.
        self._content = np.zeros(problem.nodes, dtype=np.bool_)
        self._asked: Ints = np.empty(0, dtype=np.int64)
        self._undo: list[tuple[Ints, Ints, Ints]] = []

    @property
    def waiting_rows(self) -> int:
        """Rows that only nodes hold which have their quota: no node adds more than these and its new rows."""
        return self.covered_rows - self.local_rows

    def new_rows(self, node: int) -> int:
        """Rows of the shards that this node holds and none of those added so far: how much `covered_rows` would grow."""
        return int(self._uncovered[self._shards(node)].sum())

    def add(self, node: int, at_least: int = 0) -> int:
        """Let this node use what it can: rows that nobody uses, and those of others who then use more of their own.

        How much `local_rows` grew by it; where that would be less than `at_least`, nothing is changed.
        """
        self._undo.clear()
        gained = self._take(node)
        if gained < at_least:
            for array, where, before in reversed(self._undo):
                array[where] = before
            return gained
        self.covered_rows += self.new_rows(node)
        self.local_rows += gained
        self._uncovered[self._shards(node)] = 0
        if self.waiting_rows and not self._left[self._shards(node)].any() and not self._ways(node):
            self._content[self._asked] = True
        return gained

    def _shards(self, node: int) -> Ints:
        return self._shard_on[self._node_offsets[node] : self._node_offsets[node + 1]]

    def _entries(self, node: int) -> Ints:
        return self._entry_on[self._node_offsets[node] : self._node_offsets[node + 1]]

    def _take(self, node: int) -> int:
        gained = self._take_left(node, self._quota)
        most = min(self._quota, self.new_rows(node) + self.waiting_rows)
        while gained < most and (ways := self._ways(node)):
            for way in ways:
                gained += self._shift(way, most - gained)
                if gained == most:
                    break
        return gained

    def _take_left(self, node: int, most: int) -> int:
        """Of the rows that nobody uses and this node holds, at most so many."""
        left = self._left[self._shards(node)]
        taken = _first(left, most)
        some = np.flatnonzero(taken)
        self._change(self._used, self._entries(node)[some], taken[some])
        self._change(self._left, self._shards(node)[some], -taken[some])
        return int(taken.sum())

    def _ways(self, node: int) -> list[list[int]]:
        """The shortest chains of nodes from this one: each can take rows from the next, and the last holds rows that nobody uses.

        One to each such last node; of ways that share a node the later ones may be used up by the earlier, never the first.
        Empty when there is none; then `_asked` are the nodes that it was looked for from.
        """
        before = {node: node}
        seen = self._content.copy()
        seen[node] = True
        asked = [frontier := np.array([node])]
        while frontier.size:
            where, asker = spans(self._node_offsets, frontier)
            entry, of = spans(self._offsets, self._shard_on[where])
            holder = self._holder[entry]
            able = np.flatnonzero((self._used[entry] > 0) & ~seen[holder])
            new, first = np.unique(holder[able], return_index=True)
            before |= zip(new.tolist(), frontier[asker[of[able[first]]]].tolist(), strict=True)
            where, asker = spans(self._node_offsets, new)
            rich = np.unique(asker[np.flatnonzero(self._left[self._shard_on[where]])])
            if rich.size:
                return [self._back(int(last), before) for last in new[rich]]
            seen[new] = True
            asked.append(frontier := new)
        self._asked = np.concatenate(asked)
        return []

    @staticmethod
    def _back(last: int, before: Mapping[int, int]) -> list[int]:
        way = [last]
        while before[way[-1]] != way[-1]:
            way.append(before[way[-1]])
        return way[::-1]

    def _shift(self, way: Sequence[int], most: int) -> int:
        """Along a way every node takes as many rows from the next, and the last one as many that nobody uses."""
        steps = []
        for taker, giver in pairwise(way):
            to, from_ = self._common(taker, giver)
            rows = self._used[from_]
            most = min(most, int(rows.sum()))
            steps.append((to, from_, rows))
        most = min(most, int(self._left[self._shards(way[-1])].sum()))
        for to, from_, rows in steps:
            taken = _first(rows, most)
            self._change(self._used, to, taken)
            self._change(self._used, from_, -taken)
        return self._take_left(way[-1], most)

    def _common(self, one: int, other: int) -> tuple[Ints, Ints]:
        """The replicas on either node of the shards that both hold."""
        if (
            self._node_offsets[one + 1] - self._node_offsets[one]
            > self._node_offsets[other + 1] - self._node_offsets[other]
        ):
            return self._common(other, one)[::-1]
        few, many = self._shards(one), self._shards(other)
        place = np.minimum(np.searchsorted(many, few), len(many) - 1)
        both = many[place] == few
        return self._entries(one)[both], self._entries(other)[place[both]]

    def _change(self, array: Ints, where: Ints, by: Ints) -> None:
        before = array[where]
        self._undo.append((array, where, before))
        array[where] = before + by


def _first(rows: Ints, most: int) -> Ints:
    """How much of each of `rows` is taken when the first ones are taken until there are so many."""
    taken: npt.NDArray[np.int64] = np.clip(most - (np.cumsum(rows) - rows), 0, rows)
    return taken
