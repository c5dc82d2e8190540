"""Where copies of one result go, by HDFS's default rule and evenly. Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from heapq import heapify, heappop, heappush, heapreplace
from typing import Generic, TypeVar

Node = TypeVar("Node", str, int)
"""A node's name, or its number among sorted names: both are in the same order."""


class Writers(Generic[Node]):
    """Chooses where results go: holders of the input first, then other nodes by HDFS's default rule, evenly by rows."""

    def __init__(
        self,
        rack: Mapping[Node, object] | Sequence[object],
        candidates: Collection[Node],
        written: Mapping[Node, int] | None = None,
    ) -> None:
        """`rack` of each node, by name or by number; `written`: rows that nodes have got already."""
        self._rack: Mapping[Node, object] = rack  # type: ignore[assignment]  # a list is a mapping from numbers
        self._candidates: list[Node] = sorted(candidates)
        self._written: defaultdict[Node, int] = defaultdict(int, written or {})
        self._strangers: _ByRack[Node] | None = None

    def choose(self, first: Node | None, preferred: Sequence[Node], count: int, rows: int) -> tuple[Node, ...]:
        """`count` distinct nodes (fewer when there are no more): `first`, then `preferred`, then any candidate.

        Among equals HDFS's rule decides: the second copy in another rack than the first, the third in the rack of the
        second, further ones where the rack has the fewest; then who got the least so far; then the name.
        """
        chosen: list[Node] = [] if first is None else [first]
        left = sorted(name for name in preferred if name not in chosen)
        if len(left) <= count - len(chosen):  # all of them, so there is nothing to choose
            chosen += left
            left = []
        while len(chosen) < count:
            best = self._among(chosen, left) if left else self._stranger(chosen)
            if best is None:
                break
            chosen.append(best)
            left = [name for name in left if name != best]
        for name in chosen:
            self._written[name] += rows
        return tuple(chosen[:count])

    def _among(self, chosen: Sequence[Node], left: Sequence[Node]) -> Node:
        """The best of a few nodes."""
        rack = self._rack
        taken = [rack[other] for other in chosen]
        return min(left, key=lambda name: (_rule(taken, rack[name]), self._written[name], name))

    def _stranger(self, chosen: Sequence[Node]) -> Node | None:
        """The best of all candidates, of whom there may be very many; None where all are chosen."""
        if self._strangers is None:
            self._strangers = _ByRack(self._rack, self._candidates, self._written)
        taken = [self._rack[other] for other in chosen]
        least = self._strangers.least_of_each(taken, chosen)
        return min(least, key=lambda entry: (_rule(taken, self._rack[entry[1]]), *entry))[1] if least else None


def _rule(taken: Sequence[object], rack: object) -> int:
    """How far from HDFS's rule the next copy would be in `rack`, when the others are in the racks `taken`."""
    if len(taken) == 2 and taken[0] != taken[1]:
        return int(rack != taken[1])
    return taken.count(rack)


class _ByRack(Generic[Node]):
    """Who of many nodes has got the least, rack by rack: heaps whose entries are brought up to date as they come up."""

    def __init__(self, rack: Mapping[Node, object], nodes: Collection[Node], written: defaultdict[Node, int]) -> None:
        self._rack: Mapping[Node, object] = rack
        self._written: defaultdict[Node, int] = written
        self._nodes: dict[object, list[tuple[int, Node]]] = {}
        for node in nodes:
            self._nodes.setdefault(rack[node], []).append((written[node], node))
        for heap in self._nodes.values():
            heapify(heap)
        self._racks: list[tuple[int, Node]] = [heap[0] for heap in self._nodes.values()]
        heapify(self._racks)

    def least_of_each(self, racks: Collection[object], but: Collection[Node]) -> list[tuple[int, Node]]:
        """(rows, node) of the nodes of each of a few racks, except a few nodes, and of the nodes of all other racks."""
        found = _least(self._racks, self._best_beside, lambda node: self._rack[node] in racks)
        for rack in dict.fromkeys(racks):
            found += self._least_in(rack, but)
        return found

    def _least_in(self, rack: object, but: Collection[Node]) -> list[tuple[int, Node]]:
        return _least(self._nodes.get(rack, []), lambda node: (self._written[node], node), lambda node: node in but)

    def _best_beside(self, node: Node) -> tuple[int, Node]:
        return self._least_in(self._rack[node], ())[0]


def _least(
    heap: list[tuple[int, Node]], now: Callable[[Node], tuple[int, Node]], skipped: Callable[[Node], bool]
) -> list[tuple[int, Node]]:
    """The first entry that is not `skipped`, if there is one; `now` gives what an entry is by now, never something less."""
    aside: list[tuple[int, Node]] = []
    found: list[tuple[int, Node]] = []
    while heap and not found:
        if (entry := now(heap[0][1])) != heap[0]:
            heapreplace(heap, entry)
        elif skipped(entry[1]):
            aside.append(heappop(heap))
        else:
            found.append(entry)
    for entry in aside:
        heappush(heap, entry)
    return found
