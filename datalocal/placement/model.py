"""A plan as a value: which shard is worked on by which node, from which replica, where results go, and why.

What `datalocal plan` prints is this object, and `datalocal submit` executes the same object.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import IntEnum
from typing import Any, Literal

from datalocal.placement.rules import Rule, rule_from_json, rule_to_json
from datalocal.spec.cluster import Cluster


class Tier(IntEnum):
    """How far a byte travels, ordered."""

    NODE_LOCAL = 0
    RACK_LOCAL = 1
    OFF_RACK = 2

    @classmethod
    def between(cls, cluster: Cluster, source: str, destination: str) -> Tier:
        """The tier of a transfer between two nodes (`head` is in a rack of its own)."""
        if source == destination:
            return cls.NODE_LOCAL
        return cls.RACK_LOCAL if cluster.rack_of(source) == cluster.rack_of(destination) else cls.OFF_RACK


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """One shard on one node.

    `shard` is the shard's key within its data set; it names the same shard in every stage (what preprocess writes from
    `part-00003.parquet` has that key in the output data set). `sources` are the nodes to read from, best first (the node
    itself when it holds a replica). `outputs` are the nodes that get the result, first the one that is written first; empty
    in a train stage. `reason` says why the work is not local, and is empty when it is.
    """

    shard: str
    node: str
    sources: tuple[str, ...]
    outputs: tuple[str, ...] = ()
    reason: str = ""

    @property
    def local(self) -> bool:
        """Whether the node reads its own replica."""
        return bool(self.sources) and self.sources[0] == self.node


StageKind = Literal["staging", "preprocess", "train"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePlan:
    """One stage of an arm: every shard assigned once (`staging`: once per copy).

    `input` says what the stage reads: the job's data set (`dataset`), what the staging stage copied (`staged`), or what
    the preprocess stage wrote (`output`)."""

    name: str
    kind: StageKind
    input: Literal["dataset", "staged", "output"]
    assignments: tuple[Assignment, ...]
    rule: Rule | None = None
    """Decides during the run which node takes which shard; the assignments are then what is expected. None: as assigned."""

    @property
    def nodes(self) -> tuple[str, ...]:
        """The nodes that work in this stage, in stable order."""
        return tuple(sorted({assignment.node for assignment in self.assignments}))


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What one policy wants done: the stages of one arm, in order."""

    policy: str
    stages: tuple[StagePlan, ...]

    def to_json(self) -> dict[str, Any]:
        """The plan as plain JSON values."""
        content = asdict(self)
        for stage, row in zip(self.stages, content["stages"], strict=True):
            row["rule"] = None if stage.rule is None else rule_to_json(stage.rule)
        return content

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Plan:
        """The inverse of `to_json`."""
        return cls(
            policy=content["policy"],
            stages=tuple(
                StagePlan(
                    name=stage["name"],
                    kind=stage["kind"],
                    input=stage["input"],
                    assignments=tuple(
                        Assignment(
                            shard=row["shard"],
                            node=row["node"],
                            sources=tuple(row["sources"]),
                            outputs=tuple(row["outputs"]),
                            reason=row["reason"],
                        )
                        for row in stage["assignments"]
                    ),
                    rule=None if stage.get("rule") is None else rule_from_json(stage["rule"]),
                )
                for stage in content["stages"]
            ),
        )
