"""A stage whose nodes are chosen while it runs: the rule of the plan, fed with what really happens. Pure but for its clock."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np

from datalocal.execution.dispatch import GiveUp, Instruction, Replaced, Start
from datalocal.placement.choosers import Pick
from datalocal.placement.model import Assignment
from datalocal.placement.online import Online
from datalocal.placement.problem import Codes, Problem, Reason, excuses
from datalocal.placement.rules import Rule

Put: TypeAlias = Callable[[str, str, str], Assignment]
"""(node, shard, reason where that is not local) -> the assignment, with the replicas that can be read now."""


@dataclass(slots=True)
class OnlineDispatch:
    """The state of one stage, by names; the rule decides by numbers. A node has as many tasks as the rule's window, no more."""

    rule: Rule
    problem: Problem
    """All shards of the data set, and the nodes that are up as the stage begins."""
    shards: list[str]
    """Those still to be done."""
    putting: Callable[[], Put]
    """Asked when the stage begins and after a node was lost."""
    max_attempts: int
    clock: Callable[[], float] = time.monotonic
    _put: Put = field(init=False)
    _online: Online = field(init=False)
    _shards: dict[str, int] = field(init=False)
    _nodes: dict[str, int] = field(init=False)
    _excuses: Codes = field(init=False)
    _running: dict[str, Assignment] = field(default_factory=dict)
    _attempts: dict[str, int] = field(default_factory=dict)
    _moved: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Shards that are placed again: the node that had them, and why not there."""
    _gone: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        problem = self.problem
        self._shards = {problem.shard_names[number]: number for number in range(problem.shards)}
        self._nodes = {problem.node_names[number]: number for number in range(problem.nodes)}
        self._excuses = excuses(problem, np.arange(problem.shards))
        waiting = np.array([self._shards[shard] for shard in self.shards], dtype=np.int64)
        self._online = Online(self.rule, problem, waiting=waiting)

    def begin(self) -> list[Instruction]:
        """Start what the rule gives to the empty nodes."""
        self._put = self.putting()
        return self._start(self._online.begin(self.clock()))

    def done(self, shard: str) -> list[Instruction]:
        """A task finished: its node has room."""
        assignment = self._running.pop(shard, None)
        return [] if assignment is None else self._start(self._online.ended(self._nodes[assignment.node], self.clock()))

    def failed(
        self, shard: str, cause: str, *, trace: str = "", permanent: bool = False, hint: str = ""
    ) -> list[Instruction]:
        """A task failed: it is placed again, elsewhere if anybody else is there, unless it failed for good or too often."""
        assignment = self._running.pop(shard)
        if permanent or self._attempts[shard] >= self.max_attempts:
            if not permanent:
                cause = f"{cause} (attempt {self._attempts[shard]} of {self.max_attempts})"
            return [GiveUp(shard=shard, node=assignment.node, cause=cause, trace=trace, hint=hint)]
        self._moved[shard] = (assignment.node, cause)
        return self._start(self._online.failed(self._shards[shard], self._nodes[assignment.node], self.clock()))

    def lost(self, node: str) -> list[Instruction]:
        """A node is gone with all it was working on. Raises PlacementError when nobody is left."""
        if node in self._gone or node not in self._nodes:
            return []
        self._gone.add(node)
        self._put = self.putting()
        orphans = [shard for shard, assignment in self._running.items() if assignment.node == node]
        for shard in orphans:
            del self._running[shard]
            self._moved[shard] = (node, f"{node} was lost")
        numbers = [self._shards[shard] for shard in orphans]
        return self._start(self._online.lost(self._nodes[node], numbers, self.clock()))

    def tick(self) -> list[Instruction]:
        """Ask idle nodes again when the rule says that it is time."""
        wake_s, now_s = self._online.wake_s, self.clock()
        return self._start(self._online.tick(now_s)) if wake_s is not None and wake_s <= now_s else []

    @property
    def finished(self) -> bool:
        """Whether every shard is done."""
        return not self._running and not self._online.waiting

    def _start(self, picks: list[Pick]) -> list[Instruction]:
        instructions: list[Instruction] = []
        for pick in picks:
            shard, node = self.problem.shard_names[pick.shard], self.problem.node_names[pick.node]
            excuse = Reason(int(self._excuses[pick.shard]))
            reason = excuse.text if excuse < pick.why else pick.words or pick.why.text
            assignment = self._put(node, shard, reason)
            self._running[shard] = assignment
            self._attempts[shard] = self._attempts.get(shard, 0) + 1
            if shard in self._moved:
                before, cause = self._moved.pop(shard)
                instructions.append(
                    Replaced(shard=shard, from_node=before, to_node=node, cause=cause, attempt=self._attempts[shard])
                )
            instructions.append(Start(assignment=assignment, attempt=self._attempts[shard]))
        return instructions
