"""What a plan will move, as far as that can be known before it runs. Pure.

Every figure is modelled: reads are whole shard files once per stage (once per epoch in training), from the first source of
each assignment; gradients follow the ring formula. Where it is known which rows train, a train stage is counted row group by
row group, as its ranks will read them. Sizes that only the run can tell are None, with the reason, never 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from datalocal.catalog.model import Catalog
from datalocal.estimate.labels import LabelDistance
from datalocal.estimate.reading import FOOTER_READ_BYTES, GangReads, gang_reads, output_catalog
from datalocal.placement.epochs import Mask
from datalocal.placement.model import Plan, StagePlan, Tier
from datalocal.spec.cluster import Cluster
from datalocal.spec.job import JobSpec, Train

EstimatedClass = Literal["input", "staging", "exchange", "output", "gradients", "checkpoint"]
Origin = Literal["modelled.plan", "modelled.theory"]

_UNKNOWN_OUTPUT = "what preprocess writes has no size before it has run"
_UNKNOWN_GRADIENTS = "the size of the model's gradients is not known before it is built"


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimateRow:
    """Bytes of one class from one node to another (or from a node's own disk: source = destination) in one stage."""

    stage: str
    class_: EstimatedClass
    tier: Tier
    source: str
    destination: str
    bytes: int | None
    """None where only the run can tell; `reason` says why."""
    origin: Origin = "modelled.plan"
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        """The row with the key `class`, tiers by name."""
        content = asdict(self)
        content["class"] = content.pop("class_")
        content["tier"] = self.tier.name.lower()
        return content


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The figures people compare plans by. Sums are over what is known; `unknown` names the rest."""

    tasks: int
    """Shards worked on in preprocess and train stages; copying a shard is not work on it."""
    local_tasks: int
    input_bytes: int
    """Reads of preprocess and train stages and copies of staging stages, in all epochs."""
    local_input_bytes: int
    bytes_off_node: int
    bytes_off_rack: int
    by_class: dict[str, int]
    """Bytes that leave a node, by class."""
    unknown: tuple[str, ...]
    """`stage/class: reason` of rows without a figure."""

    @property
    def local_task_share(self) -> float:
        """Share of the tasks that read their own node's replica."""
        return self.local_tasks / self.tasks if self.tasks else 1.0

    @property
    def local_byte_share(self) -> float:
        """Share of the known input bytes that are read from the node's own disk."""
        return self.local_input_bytes / self.input_bytes if self.input_bytes else 1.0

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, with both shares."""
        return {
            **asdict(self),
            "unknown": list(self.unknown),
            "local_task_share": self.local_task_share,
            "local_byte_share": self.local_byte_share,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """The rows, sorted, and their summary."""

    policy: str
    rows: tuple[EstimateRow, ...]
    summary: Summary
    gangs: Mapping[str, GangReads] = field(default_factory=dict)
    """By stage: what is known of a train stage whose rows are known."""
    labels: LabelDistance | None = None
    """Of the train stage; None where labels, or the rows that train, are not known."""
    training_rows: int = 0
    """Rows that train in each epoch, as they are counted here."""
    assumptions: tuple[str, ...] = ()
    """What was taken for granted, as sentences."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "policy": self.policy,
            "rows": [row.to_json() for row in self.rows],
            "summary": self.summary.to_json(),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What is known of a job's stages beside its plan; None where it is not."""

    gradient_bytes: int | None = None
    """Of one step's gradients: 4 per fp32 parameter."""
    checkpoint_bytes: int | None = None
    """Of one checkpoint: the states of model and optimizer."""
    output_share: float | None = None
    """Bytes that preprocess writes per byte that it reads."""
    training: Mapping[str, Mask] | None = None
    """The rows that train, by shard key; the others validate."""


def estimate(
    plan: Plan,
    job: JobSpec,
    catalog: Catalog,
    cluster: Cluster,
    *,
    gradient_bytes: int | None = None,
    output_share: float | None = None,
    checkpoint_bytes: int | None = None,
    training: Mapping[str, Mask] | None = None,
) -> Estimate:
    """The bytes of a plan before it runs; the keywords are the fields of `Known`.

    Training is counted with one rank per node, and, unless `training` or a fraction says otherwise, as if every row trained.
    """
    known = Known(
        gradient_bytes=gradient_bytes,
        checkpoint_bytes=checkpoint_bytes,
        output_share=output_share,
        training=training,
    )
    sizes = dict(zip(catalog.shards, catalog.shard_bytes.tolist(), strict=True))
    rows: list[EstimateRow] = []
    gangs: dict[str, GangReads] = {}
    labels: LabelDistance | None = None
    made = catalog
    training_rows = _training_rows(job.train, catalog.total_rows, training) if job.train is not None else 0
    for stage in plan.stages:
        share = output_share if stage.input == "output" else 1.0
        if stage.kind == "train" and job.train is not None:
            exact = _exact(stage, job, made if stage.input == "output" else catalog, known, share)
            labels = exact.labels if exact is not None else _labels(plan, stage, job, catalog, known)
            if exact is not None:
                gangs[stage.name] = exact
                rows += _exact_reads(stage, exact, cluster)
            else:
                rows += _reads(stage, sizes, cluster, job.train.epochs, share)
            steps = exact.steps if exact is not None else steps_per_epoch(job.train, training_rows)
            rows += _gradients(stage, steps * job.train.epochs, cluster, gradient_bytes)
            rows += _checkpoints(stage, job.train, steps, cluster, known)
        else:
            rows += _reads(stage, sizes, cluster, 1, share, footers=training is not None)
        if stage.kind == "preprocess":
            rows += _outputs(stage, sizes, cluster, output_share)
            if output_share is not None and training is not None:
                made = output_catalog(catalog, stage, output_share)
    rows.sort(key=lambda row: (row.stage, row.class_, row.source, row.destination))
    return Estimate(
        policy=plan.policy,
        rows=tuple(rows),
        summary=_summary(plan, rows),
        gangs=gangs,
        labels=labels,
        training_rows=training_rows,
        assumptions=_assumptions(plan, job, known),
    )


def _exact(stage: StagePlan, job: JobSpec, reads: Catalog, known: Known, share: float | None) -> GangReads | None:
    train = job.train
    if train is None or known.training is None or share is None:
        return None
    asked = train.validation is not None and train.validation.fraction is None
    return gang_reads(stage, train, reads, known.training, seed=job.seed, asked=asked)


def _labels(plan: Plan, stage: StagePlan, job: JobSpec, catalog: Catalog, known: Known) -> LabelDistance | None:
    """Where the size of what preprocess writes is not known: labels do not depend on it, and row groups hardly."""
    if known.training is None or catalog.label_counts is None:
        return None
    before = next(each for each in plan.stages if each.kind == "preprocess")
    exact = _exact(stage, job, output_catalog(catalog, before, 1.0), known, 1.0)
    return exact.labels if exact is not None else None


def _exact_reads(stage: StagePlan, exact: GangReads, cluster: Cluster) -> Iterable[EstimateRow]:
    flows: tuple[tuple[EstimatedClass, Mapping[tuple[str, str], int]], ...] = (
        ("input", exact.bytes),
        ("exchange", exact.exchanged),
    )
    for class_, amounts in flows:
        for (source, reader), amount in amounts.items():
            yield EstimateRow(
                stage=stage.name,
                class_=class_,
                tier=Tier.between(cluster, source, reader),
                source=source,
                destination=reader,
                bytes=amount,
            )


def _assumptions(plan: Plan, job: JobSpec, known: Known) -> tuple[str, ...]:
    told = []
    train = job.train
    if train is not None and known.training is None and train.validation is not None:
        if train.validation.fraction is None:
            told.append(
                "Every row is counted as one that trains: which rows validate is only known once they are read."
            )
        told.append("What validation reads after each epoch is not counted.")
    if train is not None and known.training is None and train.shuffle in ("partial", "global"):
        told.append(f"What `shuffle: {train.shuffle}` exchanges is not counted.")
    if train is not None and known.checkpoint_bytes is None:
        told.append(
            "Checkpoints are not counted: their size is not known before the model and its optimizer are built."
        )
    told.append(
        "Catalogues, code, logs and records (`control`) are not counted, nor is ingest: it is the same for every arm."
    )
    return tuple(told)


def _reads(
    stage: StagePlan,
    sizes: dict[str, int],
    cluster: Cluster,
    epochs: int,
    share: float | None,
    *,
    footers: bool = False,
) -> Iterable[EstimateRow]:
    """What a stage reads, by source and reader; `share` of the original shards' sizes, None where that is not known.

    `footers`: a preprocess task reads the end of the file, to find its footer, and then everything.
    """
    once_more = FOOTER_READ_BYTES if footers and stage.kind == "preprocess" else 0
    amounts: dict[tuple[str, str], int] = {}
    for assignment in stage.assignments:
        pair = (assignment.sources[0], assignment.node)
        size = sizes[assignment.shard]
        amounts[pair] = amounts.get(pair, 0) + size * epochs + min(once_more, size)
    for (source, reader), amount in amounts.items():
        yield EstimateRow(
            stage=stage.name,
            class_="staging" if stage.kind == "staging" else "input",
            tier=Tier.between(cluster, source, reader),
            source=source,
            destination=reader,
            bytes=None if share is None else round(amount * share),
            reason=_UNKNOWN_OUTPUT if share is None else "",
        )


def _outputs(stage: StagePlan, sizes: dict[str, int], cluster: Cluster, share: float | None) -> Iterable[EstimateRow]:
    """Where results and their copies go; how large they are only the run can tell, or who has seen another run."""
    amounts: dict[tuple[str, str], int] = {}
    for assignment in stage.assignments:
        for output in assignment.outputs:
            pair = (assignment.node, output)
            amounts[pair] = amounts.get(pair, 0) + sizes[assignment.shard]
    for (writer, output), amount in amounts.items():
        yield EstimateRow(
            stage=stage.name,
            class_="output",
            tier=Tier.between(cluster, writer, output),
            source=writer,
            destination=output,
            bytes=None if share is None else round(amount * share),
            reason=_UNKNOWN_OUTPUT if share is None else "",
        )


def _training_rows(train: Train, rows: int, training: Mapping[str, Mask] | None) -> int:
    """Those that `training` tells by shard, else the share of all `rows` that does not validate."""
    if training is not None:
        return sum(int(mask.sum()) for mask in training.values())
    fraction = train.validation.fraction if train.validation is not None else None
    return rows - round(rows * fraction) if fraction is not None else rows


def steps_per_epoch(train: Train, training_rows: int) -> int:
    """The last step of an epoch may have fewer rows."""
    return -(-training_rows // train.batch)


def _gradients(stage: StagePlan, steps: int, cluster: Cluster, gradient_bytes: int | None) -> Iterable[EstimateRow]:
    """A ring all-reduce over m nodes sends 2 (m - 1) / m times the gradients from each node to the next, every step."""
    nodes = stage.nodes
    if len(nodes) < 2:
        return
    m = len(nodes)
    each = None if gradient_bytes is None else round(2 * (m - 1) * gradient_bytes * steps / m)
    for place, node in enumerate(nodes):
        after = nodes[(place + 1) % m]
        yield EstimateRow(
            stage=stage.name,
            class_="gradients",
            tier=Tier.between(cluster, node, after),
            source=node,
            destination=after,
            bytes=each,
            origin="modelled.theory",
            reason="" if each is not None else _UNKNOWN_GRADIENTS,
        )


def checkpoints_per_epoch(train: Train, steps: int) -> int:
    """One every `checkpoint_every_steps` and one at the end."""
    return -(-steps // train.checkpoint_every_steps)


def _checkpoints(stage: StagePlan, train: Train, steps: int, cluster: Cluster, known: Known) -> Iterable[EstimateRow]:
    """The first rank sends the state to the run's own process, and copies to the store where the job asks for them."""
    if known.checkpoint_bytes is None:
        return
    first = stage.nodes[0]
    size = known.checkpoint_bytes * checkpoints_per_epoch(train, steps) * train.epochs
    weights = known.gradient_bytes  # what trains is written once more, alone, when the last epoch is through
    shelved = None if weights is None else size + weights
    amounts = {"head": size} | dict.fromkeys(_shelves(train, cluster, first), shelved)
    for target, amount in amounts.items():
        yield EstimateRow(
            stage=stage.name,
            class_="checkpoint",
            tier=Tier.between(cluster, first, target),
            source=first,
            destination=target,
            bytes=amount,
            reason=_UNKNOWN_GRADIENTS if amount is None else "",
        )


def _shelves(train: Train, cluster: Cluster, node: str) -> list[str]:
    """Where the store keeps copies: the own node, then those of other racks, then the rack's others."""
    rack = cluster.rack_of(node)
    order = sorted(
        (each.name for each in cluster.storage_nodes),
        key=lambda name: (name != node, cluster.rack_of(name) == rack, name),
    )
    return order[: train.checkpoint_replication or 0]


def _summary(plan: Plan, rows: Iterable[EstimateRow]) -> Summary:
    rows = list(rows)
    work = [a for stage in plan.stages if stage.kind != "staging" for a in stage.assignments]
    known = [(row, row.bytes) for row in rows if row.bytes is not None]
    read = [(row, count) for row, count in known if row.class_ in ("input", "staging")]
    by_class: dict[str, int] = {}
    for row, count in known:
        if row.tier > Tier.NODE_LOCAL:
            by_class[row.class_] = by_class.get(row.class_, 0) + count
    return Summary(
        tasks=len(work),
        local_tasks=sum(assignment.local for assignment in work),
        input_bytes=sum(count for _, count in read),
        local_input_bytes=sum(count for row, count in read if row.tier == Tier.NODE_LOCAL),
        bytes_off_node=sum(by_class.values()),
        bytes_off_rack=sum(count for row, count in known if row.tier == Tier.OFF_RACK),
        by_class=by_class,
        unknown=tuple(sorted({f"{row.stage}/{row.class_}: {row.reason}" for row in rows if row.bytes is None})),
    )
