"""The shards that still wait, found by node, by rack or in order, each in constant time over a whole stage. Pure."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from datalocal.placement.flow import rack_pairs
from datalocal.placement.problem import Ints, Problem
from datalocal.placement.waves import Index


class Pending:
    """Shards by number, nodes by number; nothing is found again once it is taken. A node that is closed takes no more."""

    def __init__(self, problem: Problem, waiting: Ints | None = None) -> None:
        """`waiting`: the shards that wait; None: all."""
        shards, racks = problem.shards, len(problem.rack_names)
        chosen = np.arange(shards) if waiting is None else np.sort(waiting)
        mask = np.zeros(shards, dtype=np.bool_)
        mask[chosen] = True
        self.gone = bytearray((~mask).astype(np.uint8).tobytes())
        self.count = len(chosen)
        self.index = Index.of(problem.replica_offsets, problem.replica_nodes, problem.nodes)
        self.rack: list[int] = problem.rack.tolist()
        works = problem.rate > 0
        self.open: list[bool] = works.tolist()
        of, rack = np.divmod(rack_pairs(problem, np.arange(shards)), racks)
        by_rack = np.argsort(rack, kind="stable")
        self._of_rack = np.split(of[by_rack], np.cumsum(np.bincount(rack, minlength=racks))[:-1])
        open_in_rack = np.bincount(problem.rack[works], minlength=racks)
        able = np.bincount(problem.owner[works[problem.replica_nodes]], minlength=shards)
        near = np.bincount(of[open_in_rack[rack] > 0], minlength=shards)
        self.local = int((mask & (able > 0)).sum())
        """Pending shards that some open node holds."""
        self.rack_local = int((mask & (near > 0)).sum())
        """Pending shards with a replica in a rack that has an open node."""
        self._able: list[int] = able.tolist()
        self._near: list[int] = near.tolist()
        self._open_in_rack: list[int] = open_in_rack.tolist()
        self._at_node: dict[int, list[int]] = {}
        self._in_rack: dict[int, list[int]] = {}
        self._rest: list[int] = chosen[::-1].tolist()

    def on(self, node: int) -> int | None:
        """The first pending shard that `node` holds."""
        held = self._at_node.get(node)
        if held is None:
            held = self._at_node[node] = self.index.column(node)[::-1].tolist()
        return self._last(held)

    def some_on(self, node: int, most: int) -> list[int]:
        """Up to `most` pending shards that `node` holds, the first ones."""
        self.on(node)
        held, found = self._at_node[node], []
        for place in range(len(held) - 1, -1, -1):
            if not self.gone[held[place]]:
                found.append(held[place])
                if len(found) == most:
                    break
        return found

    def near(self, node: int) -> int | None:
        """The first pending shard with a replica in the rack of `node`."""
        rack = self.rack[node]
        held = self._in_rack.get(rack)
        if held is None:
            held = self._in_rack[rack] = self._of_rack[rack][::-1].tolist()
        return self._last(held)

    def first(self) -> int | None:
        """The first pending shard of all."""
        return self._last(self._rest)

    def ordered(self) -> Iterable[int]:
        """All pending shards, in order."""
        return (shard for shard in reversed(self._rest) if not self.gone[shard])

    def _last(self, held: list[int]) -> int | None:
        while held and self.gone[held[-1]]:
            held.pop()
        return held[-1] if held else None

    def held_by_open(self, shard: int) -> bool:
        """Whether a node that still takes work holds it."""
        return self._able[shard] > 0

    def take(self, shard: int) -> None:
        """It waits no longer."""
        self.gone[shard] = 1
        self.count -= 1
        self.local -= self._able[shard] > 0
        self.rack_local -= self._near[shard] > 0

    def close(self, node: int) -> None:
        """`node` takes no more work: it is gone, or has had what it can do."""
        if not self.open[node]:
            return
        self.open[node] = False
        for shard in self.index.column(node).tolist():
            self._able[shard] -= 1
            self.local -= not self.gone[shard] and not self._able[shard]
        rack = self.rack[node]
        self._open_in_rack[rack] -= 1
        if not self._open_in_rack[rack]:
            for shard in self._of_rack[rack].tolist():
                self._near[shard] -= 1
                self.rack_local -= not self.gone[shard] and not self._near[shard]
