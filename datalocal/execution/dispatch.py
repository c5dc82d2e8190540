"""Which task starts when, and what happens to the work of a lost node. Pure: events in, instructions out.

Used for independent tasks (staging, preprocess, row selection). Only a window of tasks per node is handed to the executor:
a million tasks sent at once would sit in the memory of scheduler and workers.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from datalocal.placement.model import Assignment


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Start this assignment now."""

    assignment: Assignment
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Replaced:
    """For the ledger: the shard goes to another node, and why."""

    shard: str
    from_node: str
    to_node: str
    cause: str
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GiveUp:
    """The stage cannot be finished: this shard failed for good."""

    shard: str
    node: str
    cause: str
    trace: str = ""
    hint: str = ""


Instruction: TypeAlias = Start | Replaced | GiveUp
Replace: TypeAlias = Callable[[Sequence[str], Collection[str]], Sequence[Assignment]]
"""(shards, nodes that may be used) -> where they go now. Raises PlacementError when there is no way."""


class Dispatching(Protocol):
    """The state of one stage. Every method says what happened and returns what is to be done next."""

    def begin(self) -> list[Instruction]:
        """The stage begins."""

    def done(self, shard: str) -> list[Instruction]:
        """A task finished."""

    def failed(
        self, shard: str, cause: str, *, trace: str = "", permanent: bool = False, hint: str = ""
    ) -> list[Instruction]:
        """A task failed; `permanent`: it would elsewhere, too."""

    def lost(self, node: str) -> list[Instruction]:
        """A node is gone."""

    def tick(self) -> list[Instruction]:
        """Time has passed; called now and then."""

    @property
    def finished(self) -> bool:
        """Whether every shard is done."""


@dataclass(slots=True)
class Dispatch:
    """A stage whose nodes were chosen before it began."""

    assignments: Sequence[Assignment]
    slots: Mapping[str, int]
    """Slots of each node that is alive."""
    max_attempts: int
    replace: Replace
    window_per_slot: int = 2
    _waiting: dict[str, deque[Assignment]] = field(default_factory=dict)
    _running: dict[str, Assignment] = field(default_factory=dict)
    _attempts: dict[str, int] = field(default_factory=dict)
    _alive: set[str] = field(default_factory=set)

    def begin(self) -> list[Instruction]:
        """Start the first window on every node; what was planned for a node that is gone is re-placed first."""
        self._alive = set(self.slots)
        gone = [assignment for assignment in self.assignments if assignment.node not in self._alive]
        for assignment in self.assignments:
            if assignment.node in self._alive:
                self._waiting.setdefault(assignment.node, deque()).append(assignment)
        return self._move(gone, "the node was not there when the stage began", self._alive) + self._fill()

    def done(self, shard: str) -> list[Instruction]:
        """A task finished."""
        self._running.pop(shard, None)
        return self._fill()

    def failed(
        self, shard: str, cause: str, *, trace: str = "", permanent: bool = False, hint: str = ""
    ) -> list[Instruction]:
        """A task failed: it goes to another node, unless it failed for good or too often."""
        assignment = self._running.pop(shard)
        if permanent or self._attempts[shard] >= self.max_attempts:
            if not permanent:
                cause = f"{cause} (attempt {self._attempts[shard]} of {self.max_attempts})"
            return [GiveUp(shard=shard, node=assignment.node, cause=cause, trace=trace, hint=hint)]
        others = self._alive - {assignment.node}
        try:
            moved = self._move([assignment], cause, others or self._alive)
        except Exception:  # no other node can take it: once more where it was
            moved = self._move([assignment], cause, self._alive)
        return moved + self._fill()

    def lost(self, node: str) -> list[Instruction]:
        """A node is gone with all it was working on and all that waited for it."""
        if node not in self._alive:
            return []
        self._alive.discard(node)
        orphans = [assignment for assignment in self._running.values() if assignment.node == node]
        for assignment in orphans:
            del self._running[assignment.shard]
        orphans += list(self._waiting.pop(node, ()))
        return self._move(orphans, f"{node} was lost", self._alive) + self._fill()

    def tick(self) -> list[Instruction]:
        """Time changes nothing: every shard waits for its own node."""
        return []

    @property
    def finished(self) -> bool:
        """Whether every shard is done."""
        return not self._running and not any(self._waiting.values())

    def _move(self, orphans: Sequence[Assignment], cause: str, nodes: Collection[str]) -> list[Instruction]:
        if not orphans:
            return []
        before = {assignment.shard: assignment.node for assignment in orphans}
        instructions: list[Instruction] = []
        for assignment in self.replace([orphan.shard for orphan in orphans], nodes):
            self._waiting.setdefault(assignment.node, deque()).appendleft(assignment)
            instructions.append(
                Replaced(
                    shard=assignment.shard,
                    from_node=before[assignment.shard],
                    to_node=assignment.node,
                    cause=cause,
                    attempt=self._attempts.get(assignment.shard, 0) + 1,
                )
            )
        return instructions

    def _fill(self) -> list[Instruction]:
        in_flight: dict[str, int] = {}
        for assignment in self._running.values():
            in_flight[assignment.node] = in_flight.get(assignment.node, 0) + 1
        starts: list[Instruction] = []
        for node in sorted(self._waiting):
            queue = self._waiting[node]
            room = self.slots[node] * self.window_per_slot - in_flight.get(node, 0)
            for _ in range(min(room, len(queue))):
                assignment = queue.popleft()
                self._running[assignment.shard] = assignment
                self._attempts[assignment.shard] = self._attempts.get(assignment.shard, 0) + 1
                starts.append(Start(assignment=assignment, attempt=self._attempts[assignment.shard]))
        return starts
