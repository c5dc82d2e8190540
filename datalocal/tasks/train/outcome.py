"""How a launch ended on one node, as it travels from a rank to its agent and from the agent to the node's worker."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

from datalocal.errors import StorageError, TaskError

FailureKind: TypeAlias = Literal["task", "storage", "peers", "killed", "launch"]
"""`task`: the user's code or bad input, certain to happen again; `storage`: a read or write; `peers`: other ranks went away;
`killed`: the rank's process was ended; `launch`: the ranks never met."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a rank (or, where `rank` is None, the launch on this node) failed."""

    kind: FailureKind
    cause: str
    trace: str = ""
    hint: str = ""
    rank: int | None = None
    when: float = 0.0
    """Unix time; orders the failures of one node."""
    told: bool = False
    """Whether the run process has this failure's record already."""

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def error(self, node: str, task: str) -> Exception:
        """The exception that the node raises: TaskError only for what would fail everywhere."""
        if self.kind == "task":
            return TaskError(node, task, self.cause, self.trace, hint=self.hint)
        if self.kind == "storage":
            return StorageError(self.cause, self.hint)
        if self.kind == "killed":
            return ChildProcessError(f"{task} on {node}: {self.cause}")
        return ConnectionError(f"{task} on {node}: {self.cause}")
