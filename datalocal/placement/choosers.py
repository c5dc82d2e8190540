"""What each dispatch rule answers when a node has room: which waiting shard it gets, or none for now. Pure.

Time comes with every call, so the same code decides in a run (a clock's time) and in a simulation (the next event's).
"""

from __future__ import annotations

from collections import deque
from math import ceil
from typing import NamedTuple, Protocol

from datalocal.placement.pending import Pending
from datalocal.placement.problem import Ints, Problem, Reason
from datalocal.placement.rules import DaskDefault, DaskReplicas, Rule, SparkDelay, YarnDelay


class Pick(NamedTuple):
    """A shard goes to a node; why, if the node does not hold it."""

    shard: int
    node: int
    why: Reason
    words: str


class Chooser(Protocol):
    """The part of a rule that decides."""

    strict: bool
    """Whether a shard goes nowhere but to its holders as long as one of them is there."""

    def window(self, slots: int) -> int:
        """Tasks that a node of so many slots is given at a time."""

    def offer(self, node: int, now_s: float) -> Pick | None:
        """`node` has room. The shard it gets counts as taken once the caller says so to `Pending`."""

    def after(self, *, everybody: bool, idle: int, now_s: float) -> None:
        """A round of offers is over (`everybody`: to all nodes with room); `idle` nodes have room and got nothing."""

    def hopeless(self, idle: int, now_s: float) -> bool:
        """Whether none of `idle` nodes, which all hold nothing that waits, would get anything now; they count as asked."""

    def wake_s(self) -> float | None:
        """When nodes that got nothing should be asked again though nothing else happened; None: never."""

    def lost(self, node: int) -> None:
        """`node` is gone, and closed in `Pending`."""


def chooser_of(rule: Rule, problem: Problem, pending: Pending, room: Ints | None) -> Chooser:
    """The rule at work on these pending shards. `room` [M]: shards that each node may still be given; None: any number."""
    match rule:
        case DaskDefault():
            return _DaskDefault(rule, pending)
        case DaskReplicas():
            return _DaskReplicas(problem, pending, room)
        case SparkDelay():
            return _SparkDelay(rule, pending)
        case YarnDelay():
            return _YarnDelay(rule, problem, pending)


class _Plain:
    """As many tasks as slots, no memory of offers."""

    strict = False

    def window(self, slots: int) -> int:
        return slots

    def after(self, *, everybody: bool, idle: int, now_s: float) -> None:
        pass

    def hopeless(self, idle: int, now_s: float) -> bool:
        return False

    def wake_s(self) -> float | None:
        return None

    def lost(self, node: int) -> None:
        pass


class _DaskDefault(_Plain):
    def __init__(self, rule: DaskDefault, pending: Pending) -> None:
        self._saturation, self._pending = rule.saturation, pending

    def window(self, slots: int) -> int:
        return max(ceil(self._saturation * slots), 1)

    def offer(self, node: int, now_s: float) -> Pick | None:
        shard = self._pending.first()
        return None if shard is None else Pick(shard, node, Reason.NOT_ASKED, "dask does not see where replicas lie")


class _DaskReplicas(_Plain):
    strict = True

    def __init__(self, problem: Problem, pending: Pending, room: Ints | None) -> None:
        self._pending = pending
        self._weight = [1.0 / slots if slots else 0.0 for slots in problem.slots.tolist()]
        self._spare: list[float] = [float("inf")] * problem.nodes if room is None else room.tolist()
        self._queue: list[deque[int]] = [deque() for _ in range(problem.nodes)]
        self._queued = [0] * problem.nodes
        self._where = [-1] * problem.shards
        """The node in whose queue a shard waits."""
        self._anywhere: deque[int] = deque()
        holders, ends = problem.replica_nodes.tolist(), problem.replica_offsets.tolist()
        for shard in pending.ordered():
            self._send(shard, holders[ends[shard] : ends[shard + 1]])

    def _send(self, shard: int, holders: list[int]) -> None:
        best, least = -1, float("inf")
        for node in holders:
            if self._pending.open[node] and self._spare[node] > 0:
                occupancy = self._queued[node] * self._weight[node]
                if occupancy < least:
                    best, least = node, occupancy
        self._where[shard] = best
        if best < 0:
            self._anywhere.append(shard)
            return
        self._queue[best].append(shard)
        self._queued[best] += 1
        self._spare[best] -= 1

    def offer(self, node: int, now_s: float) -> Pick | None:
        queue = self._queue[node]
        while queue:
            shard = queue.popleft()
            if self._where[shard] == node and not self._pending.gone[shard]:
                self._queued[node] -= 1
                return Pick(shard, node, Reason.LOCAL, "")
        if self._spare[node] <= 0:
            return None
        found = [shard for shard in self._pending.some_on(node, 16) if self._where[shard] >= 0]
        if found:
            return self._steal(found, node)
        while self._anywhere:
            shard = self._anywhere.popleft()
            if not self._pending.gone[shard]:
                self._spare[node] -= 1
                return Pick(shard, node, Reason.HOLDERS_FULL, "no working node that holds it has room")
        return None

    def _steal(self, found: list[int], node: int) -> Pick:
        """From the busiest of those in whose queue they wait."""
        shard = max(found, key=lambda shard: self._queued[self._where[shard]] * self._weight[self._where[shard]])
        victim = self._where[shard]
        self._queued[victim] -= 1
        self._spare[victim] += 1
        self._spare[node] -= 1
        self._where[shard] = node
        return Pick(shard, node, Reason.LOCAL, "")

    def lost(self, node: int) -> None:
        waiting = [shard for shard in self._queue[node] if self._where[shard] == node and not self._pending.gone[shard]]
        self._queue[node].clear()
        self._queued[node] = 0
        for shard in waiting:
            self._send(shard, self._pending.index.row(shard).tolist())


class _SparkDelay(_Plain):
    def __init__(self, rule: SparkDelay, pending: Pending) -> None:
        self._wait, self._pending = rule.wait_s, pending
        self._level = 0
        """0: node-local only, 1: rack-local too, 2: anywhere."""
        self._since: float | None = None
        self._clean = True
        """No node was refused since all of them found work."""
        self._idle = 0
        self._refused = False
        self._launched: int | None = None
        """The nearest level of the tasks that this round started."""
        wait = f"{rule.wait_s:g} s"
        self._words = (
            "",
            f"its holders were busy for {wait}",
            f"its holders were busy for {wait}, and their racks for {wait} more",
        )

    def _allowed(self, now_s: float) -> int:
        if self._since is None:
            self._since = now_s
        while self._level < 2:
            if not (self._pending.local, self._pending.rack_local)[self._level]:
                self._since = now_s
            elif now_s >= self._since + self._wait:
                self._since += self._wait
            else:
                break
            self._level += 1
        return self._level

    def offer(self, node: int, now_s: float) -> Pick | None:
        allowed = self._allowed(now_s)
        sought = (self._pending.on, self._pending.near, lambda _: self._pending.first())
        for level in range(allowed + 1):
            shard = sought[level](node)
            if shard is not None:
                self._launched = level if self._launched is None else min(self._launched, level)
                full = level and not self._pending.held_by_open(shard)
                return Pick(shard, node, Reason.HOLDERS_FULL if full else Reason.WAITED, self._words[level])
        self._refused = self._refused or self._pending.count > 0
        return None

    def after(self, *, everybody: bool, idle: int, now_s: float) -> None:
        self._idle = idle
        if self._refused:
            self._clean = False
        elif self._launched is not None and (everybody or self._clean):
            self._since, self._level, self._clean = now_s, self._launched, True
        self._refused, self._launched = False, None

    def wake_s(self) -> float | None:
        if not self._idle or not self._pending.count or self._since is None:
            return None
        if self._level < 2 and (self._pending.local, self._pending.rack_local)[self._level]:
            return self._since + self._wait
        return self._since


class _YarnDelay(_Plain):
    def __init__(self, rule: YarnDelay, problem: Problem, pending: Pending) -> None:
        working = int((problem.rate > 0).sum())
        self._pending, self._beat = pending, rule.heartbeat_s
        self._rack_after = working if rule.misses is None else min(rule.misses, working)
        self._any_after = self._rack_after + (working if rule.rack_misses is None else rule.rack_misses)
        self._missed, self._idle = 0, 0
        self._since: float | None = None
        """When the last heartbeats of idle nodes were counted."""

    def _heartbeats(self, now_s: float) -> None:
        """Idle nodes have offered themselves with every beat since the last count, in vain."""
        if self._since is None or not self._idle:
            self._since = now_s
            return
        beats = int((now_s - self._since) / self._beat + 1e-6)
        self._missed += beats * self._idle
        self._since += beats * self._beat

    def offer(self, node: int, now_s: float) -> Pick | None:
        self._heartbeats(now_s)
        self._missed += 1
        shard = self._pending.on(node)
        if shard is not None:
            self._missed = 0
            return Pick(shard, node, Reason.LOCAL, "")
        for after, seek in (
            (self._rack_after, self._pending.near),
            (self._any_after, lambda _: self._pending.first()),
        ):
            shard = seek(node) if self._missed > after else None
            if shard is not None:
                full = not self._pending.held_by_open(shard)
                words = f"its holders were busy while {self._missed - 1} offers of other nodes were passed over"
                if after == self._rack_after:
                    self._missed = 0
                return Pick(shard, node, Reason.HOLDERS_FULL if full else Reason.WAITED, words)
        return None

    def after(self, *, everybody: bool, idle: int, now_s: float) -> None:
        self._heartbeats(now_s)
        self._idle = idle

    def hopeless(self, idle: int, now_s: float) -> bool:
        self._heartbeats(now_s)
        if self._missed + idle > self._rack_after:
            return False
        self._missed += idle
        return True

    def wake_s(self) -> float | None:
        if not self._idle or not self._pending.count or self._since is None:
            return None
        goal = self._rack_after if self._missed <= self._rack_after and self._pending.rack_local else self._any_after
        beats = max(1, ceil((goal + 1 - self._missed) / self._idle))
        return self._since + beats * self._beat
