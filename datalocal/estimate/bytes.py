"""What a plan will move, as far as that can be known before it runs. Pure.

Every figure is modelled: reads are whole shard files once per stage (once per epoch in training), from the first source of
each assignment; gradients follow the ring formula. Where it is known which rows train, a train stage is counted row group by
row group, as its ranks will read them. Sizes that only the run can tell are None, with the reason, never 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array

from datalocal.catalog.model import Catalog
from datalocal.estimate.labels import LabelDistance
from datalocal.estimate.reading import FOOTER_READ_BYTES, GangReads, gang_reads, output_catalog
from datalocal.placement.epochs import Mask
from datalocal.placement.model import Assignments, Plan, StagePlan, Tier
from datalocal.placement.problem import Ints
from datalocal.spec.cluster import Cluster
from datalocal.spec.job import SPLIT, JobSpec, Train

EstimatedClass = Literal["input", "staging", "exchange", "output", "gradients", "checkpoint"]
Origin = Literal["modelled.plan", "modelled.theory"]

MOST_SHARDS_FOR_LABELS = 20_000
"""Beyond it ranks are not divided for the sake of their labels alone: it takes a second for so many."""

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


ROWS_SHOWN = 20_000
"""JSON lists bytes by source and destination up to so many pairs; a hundred thousand of them nobody reads."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Places:
    """The nodes of a cluster and the head, as numbers."""

    names: tuple[str, ...]
    number: Mapping[str, int]
    rack: Ints
    """Rack number of each; the head is in a rack of its own."""

    @classmethod
    def of(cls, cluster: Cluster) -> Places:
        """All nodes of `cluster`, in its order, and the head."""
        names = (*(node.name for node in cluster.nodes), "head")
        racks: dict[str, int] = {}
        rack = [racks.setdefault(node.rack, len(racks)) for node in cluster.nodes]
        return cls(
            names=names,
            number={name: place for place, name in enumerate(names)},
            rack=np.array([*rack, len(racks)], dtype=np.int64),
        )

    def numbers(self, names: Iterable[str]) -> Ints:
        """The numbers of these nodes."""
        return np.array([self.number[name] for name in names], dtype=np.int64)

    def tiers(self, source: Ints, destination: Ints) -> Ints:
        """How far each pair is apart."""
        far = np.where(self.rack[source] == self.rack[destination], int(Tier.RACK_LOCAL), int(Tier.OFF_RACK))
        return np.where(source == destination, int(Tier.NODE_LOCAL), far)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Flows:
    """Bytes of one class in one stage, K pairs of nodes as columns."""

    stage: str
    class_: EstimatedClass
    places: Places
    source: Ints
    """[K]"""
    destination: Ints
    """[K]"""
    bytes: Ints | None
    """[K]; None where only the run can tell; `reason` says why."""
    origin: Origin = "modelled.plan"
    reason: str = ""

    @property
    def tier(self) -> Ints:
        """[K] `Tier`."""
        return self.places.tiers(self.source, self.destination)

    def by_tier(self) -> dict[Tier, int]:
        """Known bytes by tier; tiers that no pair has are left out."""
        sizes, tier = np.zeros_like(self.source) if self.bytes is None else self.bytes, self.tier
        return {each: int(sizes[tier == each].sum()) for each in Tier if (tier == each).any()}

    def __iter__(self) -> Iterator[EstimateRow]:
        names = self.places.names
        sizes: list[int] | list[None] = [None] * len(self.source) if self.bytes is None else self.bytes.tolist()
        for source, destination, tier, size in zip(
            self.source.tolist(), self.destination.tolist(), self.tier.tolist(), sizes, strict=True
        ):
            yield EstimateRow(
                stage=self.stage,
                class_=self.class_,
                tier=Tier(tier),
                source=names[source],
                destination=names[destination],
                bytes=size,
                origin=self.origin,
                reason=self.reason,
            )


def _summed(source: Ints, destination: Ints, sizes: Ints) -> tuple[Ints, Ints, Ints]:
    """Each pair once, with its bytes, in ascending order."""
    wide = int(max(source.max(initial=0), destination.max(initial=0))) + 1
    table = coo_array((sizes, (source, destination)), shape=(wide, wide)).tocsr()
    table.sum_duplicates()
    pairs = table.tocoo()
    return pairs.row.astype(np.int64), pairs.col.astype(np.int64), pairs.data


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
    """What moves, and the summary of it."""

    policy: str
    flows: tuple[Flows, ...]
    summary: Summary
    gangs: Mapping[str, GangReads] = field(default_factory=dict)
    """By stage: what is known of a train stage whose rows are known."""
    labels: LabelDistance | None = None
    """Of the train stage; None where labels, or the rows that train, are not known."""
    training_rows: int = 0
    """Rows that train in each epoch, as they are counted here."""
    assumptions: tuple[str, ...] = ()
    """What was taken for granted, as sentences."""

    @property
    def rows(self) -> tuple[EstimateRow, ...]:
        """A row for every stage, class and pair of nodes, sorted; made anew each time."""
        rows = [row for flows in self.flows for row in flows]
        return tuple(sorted(rows, key=lambda row: (row.stage, row.class_, row.source, row.destination)))

    def rows_to_json(self) -> list[dict[str, Any]] | None:
        """The rows as plain JSON values; None where there are more than `ROWS_SHOWN`."""
        if sum(len(flows.source) for flows in self.flows) > ROWS_SHOWN:
            return None
        return [row.to_json() for row in self.rows]

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {"policy": self.policy, "rows": self.rows_to_json(), "summary": self.summary.to_json()}


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
    places = Places.of(cluster)
    flows: list[Flows] = []
    gangs: dict[str, GangReads] = {}
    labels: LabelDistance | None = None
    made = catalog
    training_rows = _training_rows(job.train, catalog.total_rows, training) if job.train is not None else 0
    for stage in plan.stages:
        share = output_share if stage.input == "output" else 1.0
        sizes = catalog.shard_bytes[shard_numbers(stage.assignments, catalog)]
        if stage.kind == "train" and job.train is not None:
            exact = _exact(stage, job, made if stage.input == "output" else catalog, known, share)
            labels = exact.labels if exact is not None else _labels(plan, stage, job, catalog, known)
            if exact is not None:
                gangs[stage.name] = exact
                flows += _exact_reads(stage, exact, places)
            else:
                flows.append(_reads(stage, sizes, places, job.train.epochs, share))
            steps = exact.steps if exact is not None else steps_per_epoch(job.train, training_rows)
            flows += _gradients(stage, steps * job.train.epochs, places, gradient_bytes)
            flows += _checkpoints(stage, job.train, steps, cluster, places, known)
        else:
            flows.append(_reads(stage, sizes, places, 1, share, footers=training is not None))
        if stage.kind == "preprocess":
            flows.append(_outputs(stage, sizes, places, output_share))
            if output_share is not None and training is not None:
                made = output_catalog(catalog, stage, output_share, _apart(job, training))
    return Estimate(
        policy=plan.policy,
        flows=tuple(flows),
        summary=_summary(plan, flows),
        gangs=gangs,
        labels=labels,
        training_rows=training_rows,
        assumptions=_assumptions(plan, job, known),
    )


def shard_numbers(made: Assignments, catalog: Catalog) -> Ints:
    """[N] the number in the catalog of each assignment's shard."""
    if made.shards == catalog.shards:
        return np.arange(len(made))
    return np.array([catalog.index(key) for key in made.shards], dtype=np.int64)


def exact_sums(group: npt.NDArray[np.integer], values: Ints, groups: int) -> Ints:
    """[groups] sums of whole numbers, which floats hold exactly below 2^53."""
    return np.bincount(group, weights=values, minlength=groups).astype(np.int64)


def _exact(stage: StagePlan, job: JobSpec, reads: Catalog, known: Known, share: float | None) -> GangReads | None:
    train = job.train
    if train is None or known.training is None or share is None:
        return None
    asked = train.validation is not None and train.validation.fraction is None
    return gang_reads(stage, train, reads, known.training, seed=job.seed, asked=asked)


def _labels(plan: Plan, stage: StagePlan, job: JobSpec, catalog: Catalog, known: Known) -> LabelDistance | None:
    """Where the size of what preprocess writes is not known: labels do not depend on it, and row groups hardly."""
    if known.training is None or catalog.label_counts is None or len(catalog) > MOST_SHARDS_FOR_LABELS:
        return None
    before = next(each for each in plan.stages if each.kind == "preprocess")
    exact = _exact(stage, job, output_catalog(catalog, before, 1.0, _apart(job, known.training)), known, 1.0)
    return exact.labels if exact is not None else None


def _apart(job: JobSpec, training: Mapping[str, Mask] | None) -> Mapping[str, Mask] | None:
    """The rows that train where preprocess knows them too, and keeps them in row groups of their own."""
    validation = job.train.validation if job.train is not None else None
    return training if validation is not None and validation.column == SPLIT else None


def _exact_reads(stage: StagePlan, exact: GangReads, places: Places) -> Iterable[Flows]:
    amounts: tuple[tuple[EstimatedClass, Mapping[tuple[str, str], int]], ...] = (
        ("input", exact.bytes),
        ("exchange", exact.exchanged),
    )
    for class_, by_pair in amounts:
        yield Flows(
            stage=stage.name,
            class_=class_,
            places=places,
            source=places.numbers(source for source, _ in by_pair),
            destination=places.numbers(reader for _, reader in by_pair),
            bytes=np.array(list(by_pair.values()), dtype=np.int64),
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
    stage: StagePlan, sizes: Ints, places: Places, epochs: int, share: float | None, *, footers: bool = False
) -> Flows:
    """What a stage reads, by source and reader; `share` of the original shards' sizes, None where that is not known.

    `footers`: a preprocess task reads the end of the file, to find its footer, and then everything.
    """
    once_more = FOOTER_READ_BYTES if footers and stage.kind == "preprocess" else 0
    made, number = stage.assignments, places.numbers(stage.assignments.names)
    source, reader, amount = _summed(
        number[made.first_source], number[made.node], sizes * epochs + np.minimum(once_more, sizes)
    )
    return Flows(
        stage=stage.name,
        class_="staging" if stage.kind == "staging" else "input",
        places=places,
        source=source,
        destination=reader,
        bytes=_scaled(amount, share),
        reason=_UNKNOWN_OUTPUT if share is None else "",
    )


def _scaled(amount: Ints, share: float | None) -> Ints | None:
    return None if share is None else amount if share == 1 else np.rint(amount * share).astype(np.int64)


def _outputs(stage: StagePlan, sizes: Ints, places: Places, share: float | None) -> Flows:
    """Where results and their copies go; how large they are only the run can tell, or who has seen another run."""
    made, number = stage.assignments, places.numbers(stage.assignments.names)
    copies = np.diff(made.output_offsets)
    writer, output, amount = _summed(
        np.repeat(number[made.node], copies), number[made.outputs], np.repeat(sizes, copies)
    )
    return Flows(
        stage=stage.name,
        class_="output",
        places=places,
        source=writer,
        destination=output,
        bytes=_scaled(amount, share),
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


def _gradients(stage: StagePlan, steps: int, places: Places, gradient_bytes: int | None) -> Iterable[Flows]:
    """A ring all-reduce over m nodes sends 2 (m - 1) / m times the gradients from each node to the next, every step."""
    nodes = places.numbers(stage.nodes)
    m = len(nodes)
    if m < 2:
        return
    each = None if gradient_bytes is None else round(2 * (m - 1) * gradient_bytes * steps / m)
    yield Flows(
        stage=stage.name,
        class_="gradients",
        places=places,
        source=nodes,
        destination=np.roll(nodes, -1),
        bytes=None if each is None else np.full(m, each, dtype=np.int64),
        origin="modelled.theory",
        reason="" if each is not None else _UNKNOWN_GRADIENTS,
    )


def checkpoints_per_epoch(train: Train, steps: int) -> int:
    """One every `checkpoint_every_steps` and one at the end."""
    return -(-steps // train.checkpoint_every_steps)


def _checkpoints(
    stage: StagePlan, train: Train, steps: int, cluster: Cluster, places: Places, known: Known
) -> Iterable[Flows]:
    """The first rank sends the state to the run's own process, and copies to the store where the job asks for them."""
    if known.checkpoint_bytes is None:
        return
    first = stage.nodes[0]
    size = known.checkpoint_bytes * checkpoints_per_epoch(train, steps) * train.epochs
    weights = known.gradient_bytes  # what trains is written once more, alone, when the last epoch is through
    shelved = None if weights is None else size + weights
    amounts = {"head": size} | dict.fromkeys(_shelves(train, cluster, first), shelved)
    for target, amount in amounts.items():
        yield Flows(
            stage=stage.name,
            class_="checkpoint",
            places=places,
            source=places.numbers([first]),
            destination=places.numbers([target]),
            bytes=None if amount is None else np.array([amount], dtype=np.int64),
            reason=_UNKNOWN_GRADIENTS if amount is None else "",
        )


def _shelves(train: Train, cluster: Cluster, node: str) -> list[str]:
    """Where the store keeps copies: the own node, then those of other racks, then the rack's others."""
    if not train.checkpoint_replication:
        return []
    rack = cluster.rack_of(node)
    order = sorted(cluster.storage_nodes, key=lambda each: (each.name != node, each.rack == rack, each.name))
    return [each.name for each in order[: train.checkpoint_replication]]


def _summary(plan: Plan, flows: Iterable[Flows]) -> Summary:
    work = [stage.assignments for stage in plan.stages if stage.kind != "staging"]
    known = [(each, each.by_tier()) for each in flows if each.bytes is not None]
    read = [sizes for each, sizes in known if each.class_ in ("input", "staging")]
    by_class: dict[str, int] = {}
    for each, sizes in sorted(known, key=lambda pair: (pair[0].stage, pair[0].class_)):
        if any(tier > Tier.NODE_LOCAL for tier in sizes):
            off = sum(size for tier, size in sizes.items() if tier > Tier.NODE_LOCAL)
            by_class[each.class_] = by_class.get(each.class_, 0) + off
    return Summary(
        tasks=sum(len(made) for made in work),
        local_tasks=sum(int(made.local.sum()) for made in work),
        input_bytes=sum(sum(sizes.values()) for sizes in read),
        local_input_bytes=sum(sizes.get(Tier.NODE_LOCAL, 0) for sizes in read),
        bytes_off_node=sum(by_class.values()),
        bytes_off_rack=sum(sizes.get(Tier.OFF_RACK, 0) for _, sizes in known),
        by_class=by_class,
        unknown=tuple(sorted({f"{each.stage}/{each.class_}: {each.reason}" for each in flows if each.bytes is None})),
    )
