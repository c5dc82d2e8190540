"""Policies that decide during the run: a dispatch rule, events in, instructions out; and a run of it in simulated time. Pure.

Every executor feeds the same `Online` with the events of its nodes and starts what it answers. `simulate` does so with a heap
of the tasks that run, one per slot at most, never of all N.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

import numpy as np

from datalocal.errors import PlacementError
from datalocal.placement.choosers import Pick, chooser_of
from datalocal.placement.flow import finishing
from datalocal.placement.pending import Pending
from datalocal.placement.problem import Assigned, Codes, Ints, Nodes, Problem, Reason, assigned
from datalocal.placement.rules import Rule
from datalocal.units import format_seconds


class Online:
    """The state of one stage. Every method takes the time, says what happened and returns the shards to start now."""

    def __init__(self, rule: Rule, problem: Problem, *, waiting: Ints | None = None, room: Ints | None = None) -> None:
        """`waiting`: numbers of the shards to be done, None: all; `room` [M]: how many each node may get, None: any number."""
        self._pending = Pending(problem, waiting)
        self._room: list[int] | None = None if room is None else room.tolist()
        for node in [] if room is None else np.flatnonzero(room <= 0).tolist():
            self._pending.close(node)
        self._chooser = chooser_of(rule, problem, self._pending, room)
        slots: list[int] = np.where(problem.rate > 0, problem.slots, 0).tolist()
        self._slots = slots
        self._window = [self._chooser.window(count) if count else 0 for count in slots]
        self._in_flight = [0] * problem.nodes
        self._again: list[tuple[int, int]] = []
        """Shards to be started once more, and the node that had them."""
        self._idle = bytearray(problem.nodes)
        self._asked = bytearray(problem.nodes)
        """Whether a node stands in the line."""
        self._line: deque[int] = deque()
        """Nodes with room that got nothing, and some that got something since."""
        self.idle = 0
        """Nodes with room that got nothing though shards wait."""

    @property
    def waiting(self) -> int:
        """Shards that no node has."""
        return self._pending.count + len(self._again)

    @property
    def wake_s(self) -> float | None:
        """When to call `tick` if nothing happens before; None: no need."""
        return self._chooser.wake_s() if self.idle and self._pending.count else None

    def begin(self, now_s: float) -> list[Pick]:
        """All nodes are asked, the one with the least to do first, until each has its window or gets nothing."""
        return self._round(self._with_room(), now_s, everybody=True)

    def ended(self, node: int, now_s: float) -> list[Pick]:
        """A task of `node` is done."""
        self._in_flight[node] -= 1
        return self._round([node], now_s, everybody=False)

    def failed(self, shard: int, node: int, now_s: float) -> list[Pick]:
        """A task is to be started once more, elsewhere if there is anybody else."""
        self._in_flight[node] -= 1
        self._again.append((shard, node))
        return self._round(self._with_room([shard]), now_s, everybody=True)

    def lost(self, node: int, running: Sequence[int], now_s: float) -> list[Pick]:
        """`node` is gone with the tasks it had. Raises PlacementError when shards wait and nobody is left."""
        self._window[node] = self._in_flight[node] = 0
        self._pending.close(node)
        self._chooser.lost(node)
        self.idle -= self._idle[node]
        self._idle[node] = 0
        self._again += [(shard, node) for shard in running]
        if self.waiting and not any(self._window):
            raise PlacementError(
                f"{self.waiting} shards wait and no node that works here is left",
                "bring one of them back (`datalocal cluster status`) and resume the run",
            )
        return self._round(self._with_room(running), now_s, everybody=True)

    def tick(self, now_s: float) -> list[Pick]:
        """Ask the nodes again that got nothing."""
        return self._round([], now_s, everybody=True, line=True)

    def _with_room(self, shards: Sequence[int] = ()) -> list[int]:
        """Nodes with room, once per task they may have: holders of `shards` first, then who has the least to do."""
        holders = [node for shard in shards for node in self._pending.index.row(shard).tolist() if self._free(node)]
        rounds = sorted(
            (count / self._slots[node], node)
            for node, window in enumerate(self._window)
            for count in range(self._in_flight[node], window)
        )
        return [*holders, *(node for _, node in rounds)]

    def _free(self, node: int) -> bool:
        return self._in_flight[node] < self._window[node] and self._pending.open[node]

    def _round(self, nodes: Sequence[int], now_s: float, *, everybody: bool, line: bool = False) -> list[Pick]:
        picks: list[Pick] = []
        for node in nodes:
            if self.waiting and self._free(node):
                self._ask(node, now_s, picks)
        for _ in range(len(self._line) if line else 0):
            if not self.waiting or (not self._again and self._chooser.hopeless(self.idle, now_s)):
                break
            node = self._line.popleft()
            self._asked[node] = 0
            while self._idle[node] and self.waiting and self._ask(node, now_s, picks):
                pass
        if not self.waiting:
            self.idle = 0
            self._idle = bytearray(len(self._idle))
        self._chooser.after(everybody=everybody, idle=self.idle, now_s=now_s)
        return picks

    def _ask(self, node: int, now_s: float, picks: list[Pick]) -> bool:
        pick = self._once_more(node)
        if pick is None and self._pending.count:
            pick = self._chooser.offer(node, now_s)
            if pick is not None:
                self._pending.take(pick.shard)
        if pick is not None:
            picks.append(pick)
            self._in_flight[node] += 1
            if self._room is not None:
                self._room[node] -= 1
                if not self._room[node]:
                    self._pending.close(node)
        self._stand(node, idle=self._free(node) and (pick is None or bool(self._idle[node])))
        return pick is not None

    def _stand(self, node: int, *, idle: bool) -> None:
        """Whether the node stands idle from now on."""
        self.idle += idle - self._idle[node]
        self._idle[node] = idle
        if idle and not self._asked[node]:
            self._asked[node] = 1
            self._line.append(node)

    def _once_more(self, node: int) -> Pick | None:
        for place, (shard, before) in enumerate(self._again):
            holders = self._pending.index.row(shard).tolist()
            other = any(window for name, window in enumerate(self._window) if name != before)
            strict = self._chooser.strict and any(self._window[name] for name in holders if name != before)
            if (node == before and other) or (strict and node not in holders):
                continue
            del self._again[place]
            return Pick(
                shard, node, Reason.TRADED, "it is there because it failed elsewhere, or was lost with its node"
            )
        return None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ran:
    """What came of a simulated run."""

    node: Nodes
    """[N]"""
    why: Codes
    """[N] `Reason`, for shards that are not local."""
    words: dict[int, str]
    """By shard, where the rule has more to say than the reason: nothing for most."""
    seconds: float
    idle_node_seconds: float
    """Nodes with room, while shards waited."""


def run(rule: Rule, problem: Problem, room: Ints | None = None) -> Ran:
    """The rule in simulated time: a task takes 1 / speed, wherever it reads from. Every node starts empty at time 0."""
    state = Online(rule, problem, room=room)
    node = np.full(problem.shards, -1, dtype=np.int32)
    why = np.zeros(problem.shards, dtype=np.int8)
    words: dict[int, str] = {}
    takes = np.where(problem.speed > 0, 1 / np.maximum(problem.speed, 1e-300), np.inf).tolist()
    slots: list[int] = problem.slots.tolist()
    busy, queued = [0] * problem.nodes, [0] * problem.nodes
    heap: list[tuple[float, int]] = []
    now_s, idle_s = 0.0, 0.0
    picks = state.begin(now_s)
    while True:
        for pick in picks:
            node[pick.shard], why[pick.shard] = pick.node, pick.why
            if pick.words:
                words[pick.shard] = pick.words
            if busy[pick.node] < slots[pick.node]:
                busy[pick.node] += 1
                heappush(heap, (now_s + takes[pick.node], pick.node))
            else:
                queued[pick.node] += 1
        wake_s = state.wake_s
        if not heap and wake_s is None:
            break
        after_s = heap[0][0] if heap else float("inf")
        ticks = wake_s is not None and wake_s < after_s
        then_s = max(now_s, wake_s) if wake_s is not None and ticks else after_s
        idle_s += state.idle * (then_s - now_s)
        now_s = then_s
        if ticks:
            picks = state.tick(now_s)
            continue
        done = heappop(heap)[1]
        if queued[done]:
            queued[done] -= 1
            heappush(heap, (now_s + takes[done], done))
        else:
            busy[done] -= 1
        picks = state.ended(done, now_s)
    assert not state.waiting, "a rule that lets shards wait says when to ask again"
    return Ran(node=node, why=why, words=words, seconds=now_s, idle_node_seconds=idle_s)


def placing_by(name: str, rule: Rule) -> Callable[[Problem, float | None, int], Assigned]:
    """The rule as a policy: what a simulated run of it gives. T, where it is given, bounds what each node may take."""

    def place(problem: Problem, makespan_s: float | None = None, seed: int = 0) -> Assigned:
        if makespan_s is None:
            problem.least_makespan()  # refuses a cluster in which nobody works
        ran = run(rule, problem, None if makespan_s is None else problem.require(makespan_s))
        alone_s = finishing(problem, np.bincount(ran.node, minlength=problem.nodes))
        if makespan_s is None:
            makespan_s = max(ran.seconds, alone_s)
        note = (
            f"{name} in simulated time, reading not counted: done after {format_seconds(ran.seconds)}; nodes with nothing "
            f"to do while shards waited: {format_seconds(ran.idle_node_seconds)} in all"
        )
        return assigned(
            problem,
            ran.node,
            policy=name,
            makespan_s=makespan_s,
            why=ran.why,
            notes=(note,),
            waiting_seconds=max(0.0, ran.seconds - alone_s),
        )

    place.__doc__ = type(rule).__doc__
    return place
