"""What is sent to a node: tasks as values. They carry everything a node needs except its own folder and the token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeAlias

from datalocal.placement.gang import EpochPlan
from datalocal.spec.cluster import Cluster
from datalocal.spec.job import Columns, Preprocess, Train, Validation
from datalocal.spec.joining import Tls
from datalocal.spec.pipeline import Pipeline


@dataclass(frozen=True, slots=True, kw_only=True)
class Wiring:
    """Where the others are: the same for every task of a run."""

    run: str
    cluster: Cluster
    stores: Mapping[str, str]
    """Flight location of each node's store, e.g. `grpc://127.0.0.1:41234`."""
    sink: str
    """Flight location of the run process: takes logs, records and checkpoints, serves the job's packed code."""
    code: str
    """Hash of the job's packed folder; empty when the job brings no code."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """Where the run's pipeline is cut, and which weights its frozen stages have."""

    pipeline: Pipeline
    at: str
    sha256: Mapping[str, str]
    """By frozen stage: hash of its weights as the run has examined it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """Common to all tasks. `id` is deterministic (arm, stage, shard or node), so a retry is the same task."""

    id: str
    arm: str
    stage: str
    node: str
    attempt: int
    wiring: Wiring

    @property
    def needs_slot(self) -> bool:
        """Whether the task occupies one of the node's slots."""
        return True


@dataclass(frozen=True, slots=True, kw_only=True)
class StagingTask(Task):
    """Copy one shard to this node's folder, byte for byte."""

    dataset: str
    shard: str
    """Key; the path in the store is `{dataset}/{shard}`, for this and the other tasks."""
    sources: tuple[str, ...]
    destination: str
    """Data set (folder in the store) that gets the copy, under the same key."""
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreprocessTask(Task):
    """Transform one shard and write the result to `outputs`, first the first."""

    dataset: str
    shard: str
    sources: tuple[str, ...]
    outputs: tuple[str, ...]
    destination: str
    columns: Columns
    spec: Preprocess
    seed: int
    reason: str = ""
    cut: Cut | None = None
    """What to do instead of `spec.transform`, for a job with a pipeline."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SelectTask(Task):
    """Decide which rows of one shard validate. The result is a bool array, packed (`numpy.packbits`), and the row count."""

    dataset: str
    shard: str
    sources: tuple[str, ...]
    columns: Columns
    validation: Validation
    seed: int

    @property
    def needs_slot(self) -> bool:
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class RowMask:
    """Selected rows of one shard: `numpy.packbits` of a bool array of length `rows`; None selects all."""

    rows: int
    packed: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochWork:
    """An epoch for the gang: the plan, which rows are selected in each shard, and where it starts."""

    epoch: int
    plan: EpochPlan
    masks: Mapping[str, RowMask]
    start_step: int = 0
    """Steps of `plan` that were already done (and checkpointed) by the same gang."""
    first_step: int = 0
    """Number of the plan's step 0 within the whole epoch; above 0 when a re-planned gang goes on within an epoch."""
    row_by_row: bool = False
    """Whether segments count the rows of a row group in the order of `order.dealt`, not in file order."""
    window_groups: int | None = None
    """Row groups per window of the sample order; None: the reader's own number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainTask(Task):
    """The part of a gang on one node: an elastic agent in a child process, with one rank per local slot."""

    dataset: str
    launch: int
    """0 for the first launch of the gang, one more each time it is re-planned or resumed."""
    spec: Train
    columns: Columns
    labels: tuple[str, ...]
    seed: int
    nodes: tuple[str, ...]
    """All nodes of the gang; its agents meet at `rendezvous`."""
    ranks_on_node: int
    rendezvous: str
    """host:port of the store that lives in the run process."""
    world: int
    device: Literal["cpu", "cuda"]
    gpus: tuple[str, ...]
    """UUIDs for this node's ranks, by local rank; empty on the CPU."""
    epochs: tuple[EpochWork, ...]
    """Every epoch still to do, in order."""
    validation: EpochWork | None
    """Rows that validate, divided like training; `epoch` is not used."""
    checkpoint: str | None
    """Name of the checkpoint to start from, fetched from the sink."""
    checkpoint_sha256: str | None = None
    """Of its content as the run's records know it: what comes from the store instead must be that."""
    copies: str = ""
    """The data set in which the shards of `copied` lie."""
    copied: frozenset[str] = frozenset()
    cut: Cut | None = None
    """What comes between a batch as it is read and the model, for a job with a pipeline."""

    def path(self, shard: str) -> str:
        """Of a shard in the store."""
        return f"{self.copies if shard in self.copied else self.dataset}/{shard}"


AnyTask: TypeAlias = StagingTask | PreprocessTask | SelectTask | TrainTask


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeContext:
    """What a node knows of itself: given to every task that runs on it."""

    name: str
    root: Path
    """The node's folder, its disk. No other node's process opens it."""
    token: str = field(repr=False)
    cores: int
    executor: str
    tls: Tls | None = None
    """Its certificates; None on loopback."""
    in_process: bool = False
    """True under the in-process executor: no child processes, ranks take turns in one process."""
