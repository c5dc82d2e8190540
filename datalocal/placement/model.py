"""A plan as a value: which shard is worked on by which node, from which replica, where results go, and why.

What `datalocal plan` prints is this object, and `datalocal submit` executes the same object.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from itertools import accumulate, chain, compress, pairwise
from typing import Any, Literal, overload

import numpy as np
import numpy.typing as npt

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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Assignments(Sequence[Assignment]):
    """N assignments as columns: a sequence of `Assignment` that makes each when somebody looks at it."""

    shards: tuple[str, ...]
    """N keys."""
    names: tuple[str, ...]
    """What node numbers mean."""
    node: npt.NDArray[np.int32]
    """[N] number of the node that works."""
    source_offsets: npt.NDArray[np.int64]
    """[N + 1] CSR offsets into `sources`."""
    sources: npt.NDArray[np.int32]
    """Node numbers, best first within a shard."""
    output_offsets: npt.NDArray[np.int64]
    """[N + 1] CSR offsets into `outputs`."""
    outputs: npt.NDArray[np.int32]
    reason: npt.NDArray[np.int32]
    """[N] number into `reasons`."""
    reasons: tuple[str, ...]
    """Distinct texts; the first is empty."""

    @classmethod
    def of(cls, rows: Iterable[Assignment]) -> Assignments:
        """Pack rows."""
        rows = tuple(rows)
        named = {row.node for row in rows}.union(*(row.sources for row in rows), *(row.outputs for row in rows))
        names = tuple(sorted(named))
        number = {name: place for place, name in enumerate(names)}
        texts = {"": 0}
        for row in rows:
            texts.setdefault(row.reason, len(texts))

        def packed(lists: list[tuple[str, ...]]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
            ends = list(accumulate(map(len, lists), initial=0))
            flat = [number[name] for name in chain.from_iterable(lists)]
            return np.array(ends, dtype=np.int64), np.array(flat, dtype=np.int32)

        source_offsets, sources = packed([row.sources for row in rows])
        output_offsets, outputs = packed([row.outputs for row in rows])
        return cls(
            shards=tuple(row.shard for row in rows),
            names=names,
            node=np.array([number[row.node] for row in rows], dtype=np.int32),
            source_offsets=source_offsets,
            sources=sources,
            output_offsets=output_offsets,
            outputs=outputs,
            reason=np.array([texts[row.reason] for row in rows], dtype=np.int32),
            reasons=tuple(texts),
        )

    def __len__(self) -> int:
        return len(self.shards)

    @overload
    def __getitem__(self, at: int) -> Assignment: ...
    @overload
    def __getitem__(self, at: slice) -> tuple[Assignment, ...]: ...
    def __getitem__(self, at: int | slice) -> Assignment | tuple[Assignment, ...]:
        if isinstance(at, slice):
            return tuple(self[number] for number in range(*at.indices(len(self))))
        number = range(len(self))[at]
        names = self.names
        sources = self.sources[self.source_offsets[number] : self.source_offsets[number + 1]]
        outputs = self.outputs[self.output_offsets[number] : self.output_offsets[number + 1]]
        return Assignment(
            shard=self.shards[number],
            node=names[self.node[number]],
            sources=tuple(names[place] for place in sources.tolist()),
            outputs=tuple(names[place] for place in outputs.tolist()),
            reason=self.reasons[self.reason[number]],
        )

    def __iter__(self) -> Iterator[Assignment]:
        names, reasons = self.names, self.reasons
        sources, outputs = [names[n] for n in self.sources.tolist()], [names[n] for n in self.outputs.tolist()]
        read, written = pairwise(self.source_offsets.tolist()), pairwise(self.output_offsets.tolist())
        columns = zip(self.shards, self.node.tolist(), read, written, self.reason.tolist(), strict=True)
        for shard, node, (first, last), (begin, end), reason in columns:
            yield Assignment(
                shard=shard,
                node=names[node],
                sources=tuple(sources[first:last]),
                outputs=tuple(outputs[begin:end]),
                reason=reasons[reason],
            )

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(mine == its for mine, its in zip(self, other, strict=True))

    def __hash__(self) -> int:
        return hash(self.shards)

    def only(self, which: npt.NDArray[np.bool_]) -> Assignments:
        """Those in `which` [N]."""

        def cut(
            offsets: npt.NDArray[np.int64], nodes: npt.NDArray[np.int32]
        ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
            lengths = np.diff(offsets)
            ends = np.concatenate(([0], np.cumsum(lengths[which]))).astype(np.int64)
            return ends, nodes[np.repeat(which, lengths)]

        source_offsets, sources = cut(self.source_offsets, self.sources)
        output_offsets, outputs = cut(self.output_offsets, self.outputs)
        return replace(
            self,
            shards=tuple(compress(self.shards, which.tolist())),
            node=self.node[which],
            source_offsets=source_offsets,
            sources=sources,
            output_offsets=output_offsets,
            outputs=outputs,
            reason=self.reason[which],
        )

    @property
    def first_source(self) -> npt.NDArray[np.int32]:
        """[N] whom each reads from; each must have a source."""
        return self.sources[self.source_offsets[:-1]]

    @property
    def local(self) -> npt.NDArray[np.bool_]:
        """[N] whether the node reads its own replica."""
        found = np.zeros(len(self), dtype=np.bool_)
        filled = np.flatnonzero(np.diff(self.source_offsets))
        found[filled] = self.sources[self.source_offsets[filled]] == self.node[filled]
        return found


StageKind = Literal["staging", "preprocess", "train"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StagePlan:
    """One stage of an arm: every shard assigned once (`staging`: those that are copied).

    `input` says what the stage reads: the job's data set (`dataset`), what the staging stage copied (`staged`), or what
    the preprocess stage wrote (`output`); `cached` is what the staging stage copied, and the data set where it copied nothing."""

    name: str
    kind: StageKind
    input: Literal["dataset", "staged", "cached", "output"]
    assignments: Assignments
    rule: Rule | None = None
    """Decides during the run which node takes which shard; the assignments are then what is expected. None: as assigned."""

    @property
    def nodes(self) -> tuple[str, ...]:
        """The nodes that work in this stage, in stable order."""
        made = self.assignments
        return tuple(sorted(made.names[number] for number in np.flatnonzero(np.bincount(made.node)).tolist()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What one policy wants done: the stages of one arm, in order."""

    policy: str
    stages: tuple[StagePlan, ...]

    def to_json(self) -> dict[str, Any]:
        """The plan as plain JSON values."""
        return {"policy": self.policy, "stages": [_stage_to_json(stage) for stage in self.stages]}

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
                    assignments=Assignments.of(
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


def _stage_to_json(stage: StagePlan) -> dict[str, Any]:
    return {
        "name": stage.name,
        "kind": stage.kind,
        "input": stage.input,
        "assignments": [
            {
                "shard": row.shard,
                "node": row.node,
                "sources": row.sources,
                "outputs": row.outputs,
                "reason": row.reason,
            }
            for row in stage.assignments
        ],
        "rule": None if stage.rule is None else rule_to_json(stage.rule),
    }
