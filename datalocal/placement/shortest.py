"""Shortest ways between nodes where steps cost small integers and potentials keep them from being negative. For `mend`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from datalocal.placement.problem import Ints, Mask, Nodes
from datalocal.placement.waves import NOWHERE

UNSEEN = np.iinfo(np.int64).max // 4
Steps: TypeAlias = Callable[[Ints], tuple[Ints, npt.NDArray[np.int32], Nodes, Ints]]
"""From some nodes: for each step the position of its node, the shard that it moves, the other node, and its cost."""
FewSteps: TypeAlias = Callable[[list[int]], Iterator[tuple[int, int, int, int]] | None]
"""The same, one after the other: node, other node, shard, cost; None where `Steps` are better."""


class Search:
    """Dijkstra with buckets (costs are small integers), a whole bucket of nodes at a time."""

    def __init__(self, potential: Ints) -> None:
        self._potential = potential
        self._distance = np.full(len(potential), UNSEEN, dtype=np.int64)
        self._from = np.full(len(potential), NOWHERE, dtype=np.int64)
        self._by = np.full(len(potential), NOWHERE, dtype=np.int64)
        self._reached: list[Ints] = []

    def begin(self, starts: npt.NDArray[np.integer]) -> None:
        """Forget the last search; the next one starts at `starts`."""
        for nodes in self._reached:
            self._distance[nodes] = UNSEEN
        self._distance[starts] = -self._potential[starts]
        self._from[starts] = NOWHERE
        self._reached = [starts.astype(np.int64)]

    @property
    def seen(self) -> Mask:
        """[M] the nodes that were reached."""
        return np.asarray(self._distance < UNSEEN)

    def run(self, steps: Steps, toll: Ints, at_most: int, few: FewSteps | None = None) -> tuple[int, int]:
        """The node at which to stop, and the price: what the way there costs and its `toll` [M] (UNSEEN: no stopping).

        NOWHERE and `at_most` when nothing costs less than that. Potentials are brought up to date. `few` stands for `steps`
        where a bucket holds few nodes: there numpy's calls cost more than what they do.
        """
        best, end = at_most, NOWHERE
        buckets: dict[int, list[Ints]] = {}
        new = self._reached[0]
        while True:
            there = new[toll[new] < UNSEEN]
            total = self._distance[there] + toll[there] + self._potential[there]
            if there.size and total.min() < best:
                best, end = int(total.min()), int(there[np.argmin(total)])
            lengths = self._distance[new]
            for length in set(lengths.tolist()):
                buckets.setdefault(length, []).append(new[lengths == length])
            key = min(buckets, default=UNSEEN)
            if best <= key:
                break
            if key == UNSEEN:
                return NOWHERE, best
            nodes = np.concatenate(buckets.pop(key))
            nodes = nodes[self._distance[nodes] == key]
            found = few(nodes.tolist()) if few else None
            new = self._expand(steps, nodes, key) if found is None else self._take_steps(found, key)
        reached = np.unique(np.concatenate(self._reached))
        nearer = reached[self._distance[reached] < best]
        self._potential[nearer] += self._distance[nearer] - best
        return end, best

    def _expand(self, steps: Steps, nodes: Ints, key: int) -> Ints:
        """Take every step from `nodes`; the nodes that are nearer now."""
        which, shards, other, cost = steps(nodes)
        total = key + cost + self._potential[nodes[which]] - self._potential[other]
        nearer = np.flatnonzero(total < self._distance[other])
        nearer = nearer[
            np.argsort(-total[nearer], kind="stable")
        ]  # where a node is written twice, the last is the nearest
        self._distance[other[nearer]] = total[nearer]
        self._from[other[nearer]] = nodes[which[nearer]]
        self._by[other[nearer]] = shards[nearer]
        found = np.unique(other[nearer]).astype(np.int64)
        self._reached.append(found)
        return found

    def _take_steps(self, steps: Iterator[tuple[int, int, int, int]], key: int) -> Ints:
        """As `_expand`, one step after the other."""
        found: set[int] = set()
        for node, other, shard, cost in steps:
            total = key + cost + self._potential[node] - self._potential[other]
            if total < self._distance[other]:
                self._distance[other], self._from[other], self._by[other] = total, node, shard
                found.add(other)
        new = np.array(sorted(found), dtype=np.int64)
        self._reached.append(new)
        return new

    def chain(self, end: int) -> list[tuple[int, int, int]]:
        """The steps (node before, shard, node) from `end` back to a start."""
        found = []
        while (before := int(self._from[end])) != NOWHERE:
            found.append((before, int(self._by[end]), end))
            end = before
        return found
