"""Records: what a task, a rank or a meter saw. Plain JSON values, appended to the run directory, never rewritten."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, TypeAlias

TrafficClass: TypeAlias = Literal["input", "staging", "exchange", "gradients", "output", "checkpoint", "control"]

ByteOrigin: TypeAlias = Literal[
    "measured.reader", "measured.writer", "measured.socket", "modelled.pipeline", "modelled.theory"
]
"""Who counted: our own reader or writer, the kernel (TCP_INFO of the process's sockets), nobody (HDFS's own hops from DataNode to
DataNode, from what was written and where its replicas lie), or a formula."""

JouleOrigin: TypeAlias = Literal["measured.counter", "measured.sampled", "modelled.profile", "assumed", "missing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ByteRow:
    """Bytes of one class that went from one node to another (or stayed: source = destination)."""

    class_: TrafficClass
    source: str
    destination: str
    bytes: int
    origin: ByteOrigin = "measured.reader"
    traced_bytes: int = 0
    """What the DataNodes' own trace counts for this traffic (reads widened to checksum chunks); 0 where none took part."""
    operations: int = 0
    """Reads or writes of one block by one DataNode each; 0 where none took part."""
    socket_bytes: int = 0
    """What the kernel counted for these reads on the reader's own sockets to the DataNodes, with HDFS's packet headers."""

    def to_json(self) -> dict[str, Any]:
        """The row with the key `class`, as reports write it; what DataNodes should have counted only where they took part."""
        row: dict[str, Any] = {
            "class": self.class_,
            "source": self.source,
            "destination": self.destination,
            "bytes": self.bytes,
            "origin": self.origin,
        }
        traced = {
            "traced_bytes": self.traced_bytes,
            "operations": self.operations,
            "socket_bytes": self.socket_bytes,
        }
        return row | (traced if self.operations else {})

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> ByteRow:
        return cls(
            class_=row["class"],
            source=row["source"],
            destination=row["destination"],
            bytes=row["bytes"],
            origin=row["origin"],
            traced_bytes=row.get("traced_bytes", 0),
            operations=row.get("operations", 0),
            socket_bytes=row.get("socket_bytes", 0),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Damaged:
    """One image that was left out, and why."""

    shard: str
    row: int
    path: str
    problem: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRecord:
    """One finished staging or preprocess task, from the node that ran it."""

    kind: Literal["staging", "preprocess"]
    task: str
    arm: str
    stage: str
    shard: str
    planned_node: str
    node: str
    """Where it really ran, as the node itself says."""
    attempt: int
    executor: str
    started: float
    """Unix time, for people; durations come from the monotonic clock."""
    seconds: float
    images_in: int = 0
    images_out: int = 0
    row_groups: int | None = None
    """Pieces in which a preprocess task read its shard; None where nobody counted them."""
    output: str = ""
    output_bytes: int = 0
    output_nodes: tuple[str, ...] = ()
    reason: str = ""
    """Why the task was not local; empty when it was."""
    damaged: tuple[Damaged, ...] = ()
    bytes: tuple[ByteRow, ...] = ()
    seconds_by_step: dict[str, float] = field(default_factory=dict)
    """read, decode, transform, encode, write: thread-seconds of each."""
    frozen: dict[str, str] = field(default_factory=dict)
    """SHA-256 of the weights of each frozen stage that ran here, for a job with a pipeline."""

    def to_json(self) -> dict[str, Any]:
        """The record as plain JSON values."""
        return {**asdict(self), "bytes": [row.to_json() for row in self.bytes]}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> TaskRecord:
        """The inverse of `to_json`."""
        return cls(
            **{
                **content,
                "bytes": tuple(ByteRow.from_json(row) for row in content["bytes"]),
                "damaged": tuple(Damaged(**image) for image in content["damaged"]),
                "output_nodes": tuple(content["output_nodes"]),
            }
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplesLine:
    """What one rank used between two checkpoints of one epoch. A line counts only when its checkpoint is complete."""

    epoch: int
    from_step: int
    to_step: int
    rank: int
    node: str
    used: dict[str, str]
    """By shard key: uses of each row of the shard file (uint8 per row), zlib-compressed, base64."""

    def to_json(self) -> dict[str, Any]:
        """The line as plain JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> SamplesLine:
        """The inverse of `to_json`; other keys of a `samples` event are left out."""
        return cls(**{name: content[name] for name in ("epoch", "from_step", "to_step", "rank", "node", "used")})


@dataclass(frozen=True, slots=True, kw_only=True)
class RankRecord:
    """What one rank did in one launch of the gang."""

    kind: Literal["rank"] = "rank"
    arm: str
    stage: str
    launch: int
    rank: int
    world: int
    node: str
    device: str
    seconds: float
    """From the first step of this launch to its last."""
    steps: int
    images: int
    bytes: tuple[ByteRow, ...] = ()
    gradients: dict[str, float] = field(default_factory=dict)
    """logical_bytes (DDP hook), payload_bytes (TCP_INFO sent minus retransmitted), theory_bytes, steps, step_bytes."""
    seconds_by_step: dict[str, float] = field(default_factory=dict)
    """wait (for data), compute (forward, backward, sync, update), checkpoint, validate."""
    validate_away_bytes: int = 0
    """What validation read from other nodes."""
    frozen: dict[str, str] = field(default_factory=dict)
    """SHA-256 of the weights of each frozen stage in front of the model, for a job with a pipeline."""

    def to_json(self) -> dict[str, Any]:
        """The record as plain JSON values."""
        return {**asdict(self), "bytes": [row.to_json() for row in self.bytes]}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> RankRecord:
        """The inverse of `to_json`; the envelope of a `rank` event is left out."""
        known = {name: value for name, value in content.items() if name in cls.__dataclass_fields__}
        return cls(**{**known, "bytes": tuple(ByteRow.from_json(row) for row in content["bytes"])})
