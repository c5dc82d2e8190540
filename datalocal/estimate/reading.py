"""What a train stage reads when its rows are known: row group by row group, as its ranks will divide them. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from datalocal.catalog.model import Catalog, ShardEntry, build_catalog
from datalocal.estimate.labels import LabelDistance, label_distance_of
from datalocal.placement.epochs import Mask, plan_epochs, slots_of
from datalocal.placement.gang import EpochPlan
from datalocal.placement.model import StagePlan
from datalocal.placement.quota import label_mixes
from datalocal.placement.shuffles import shuffle_named
from datalocal.spec.job import Train

FOOTER_READ_BYTES = 65_536
"""What pyarrow reads from the end of a file to find its footer; a reader does so once per shard."""

GROUP_ROWS, FEWEST_GROUP_ROWS, GROUP_BYTES = 500, 100, 16 << 20
"""The row groups that preprocess writes."""

Flow = tuple[str, str]
"""(source, reader)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class GangReads:
    """One train stage: its steps, its rows by node, and the bytes that it reads in all epochs."""

    steps: int
    """Of one epoch."""
    trained_rows: dict[str, int]
    """By node, in one epoch."""
    validated_rows: dict[str, int]
    bytes: dict[Flow, int]
    labels: LabelDistance | None
    """None where nobody knows the labels."""
    exchanged: dict[Flow, int]
    """Bytes that are read for the sake of the shuffle alone."""
    validated_bytes: dict[Flow, int]
    """Those of `bytes` that one validation reads."""
    validated_pieces: int
    """Row groups of it, on the node that reads most of them."""


def gang_reads(
    stage: StagePlan, train: Train, catalog: Catalog, training: Mapping[str, Mask], *, seed: int, asked: bool
) -> GangReads:
    """`catalog` is what the stage reads; `training` the rows that train, by shard key, the others validate.

    One rank per node, shuffled as the job says. `asked`: a column or a function chose the rows, which opens every shard once
    more. Row groups that several ranks share are read by each of them.
    """
    slots = slots_of(stage.nodes, dict.fromkeys(stage.nodes, 1))
    masks = {key: mask for key, mask in training.items() if mask.any()}
    others = {key: ~mask for key, mask in training.items() if not mask.all()}
    shuffle = shuffle_named(train.shuffle, seed, train.exchange)
    amounts: dict[bool, dict[Flow, int]] = {False: {}, True: {}}
    trained: list[EpochPlan] = []
    validated: list[EpochPlan] = []
    checked: dict[bool, dict[Flow, int]] = {False: {}, True: {}}
    labels: LabelDistance | None = None
    if masks:
        epochs = 1 if shuffle.every_epoch_alike else train.epochs
        schedule = plan_epochs(
            catalog,
            stage.assignments,
            masks,
            slots,
            batch=train.batch,
            epochs=epochs,
            shuffle=shuffle,
            mixes=label_mixes(catalog) if train.class_quota else None,
        )
        trained = [epoch.plan for epoch in schedule.epochs]
        labels = label_distance_of(schedule.epochs, stage, train, catalog, masks)
        for plan in trained:
            _add(amounts, _groups(plan, catalog), train.epochs // epochs)
    if others:
        divided = plan_epochs(catalog, stage.assignments, others, slots, batch=train.batch, epochs=1, together=False)
        validated = [epoch.plan for epoch in divided.epochs]
        _add(amounts, _groups(validated[0], catalog), train.epochs)
        _add(checked, _groups(validated[0], catalog), 1)
    _add(amounts, _footers([*trained, *validated], catalog), 1)
    if asked:
        asking = ((False, (a.sources[0], a.node), _footer(catalog, a.shard)) for a in stage.assignments)
        _add(amounts, asking, 1)
    return GangReads(
        steps=trained[0].steps if trained else 0,
        trained_rows=_rows(trained[0]) if trained else {},
        validated_rows=_rows(validated[0]) if validated else {},
        labels=labels,
        bytes=amounts[False],
        exchanged=amounts[True],
        validated_bytes=checked[False],
        validated_pieces=max((len(share.segments) for plan in validated for share in plan.shares), default=0),
    )


def output_catalog(
    catalog: Catalog, stage: StagePlan, share: float, training: Mapping[str, Mask] | None = None
) -> Catalog:
    """What a preprocess stage will have written, if every shard shrinks to `share` of its bytes and no row is damaged.

    `training`: the rows that train; row groups of which all rows do, or none, stay apart.
    """
    outputs = {assignment.shard: assignment.outputs for assignment in stage.assignments}
    entries = []
    for number, key in enumerate(catalog.shards):
        rows, size = int(catalog.shard_rows[number]), int(catalog.shard_bytes[number]) * share
        mask = training.get(key) if training is not None else None
        groups = tuple(
            count
            for run in _runs(catalog.groups(number), mask)
            for count in _group_rows(run, size / rows if rows else 0.0)
        )
        entries.append(
            ShardEntry(
                key=key,
                bytes=round(size),
                replicas=outputs[key],
                group_rows=groups,
                group_bytes=tuple(round(size * count / rows) for count in groups),
                label_counts=() if catalog.label_counts is None else tuple(catalog.label_counts[number].tolist()),
            )
        )
    return build_catalog(dataset=catalog.dataset, nodes=catalog.nodes, entries=entries, labels=catalog.labels)


def _runs(group_rows: Iterable[int], mask: Mask | None) -> list[int]:
    """Rows between the places where a row group that trains as a whole meets one that validates as a whole."""
    if mask is None:
        return [sum(group_rows)]
    runs, first, before = [0], 0, None
    for rows in group_rows:
        part = mask[first : first + rows]
        trains = None if part.any() != part.all() else bool(part.any())
        if None not in (before, trains) and before != trains:
            runs.append(0)
        runs[-1] += rows
        first += rows
        before = trains if rows else before
    return runs


def _group_rows(rows: int, row_bytes: float) -> tuple[int, ...]:
    full = GROUP_ROWS if not row_bytes else int(np.clip(-(-GROUP_BYTES // row_bytes), FEWEST_GROUP_ROWS, GROUP_ROWS))
    return tuple([full] * (rows // full) + ([rows % full] if rows % full else []))


Read = tuple[bool, Flow, int]
"""(whether for the shuffle alone, (source, reader), bytes)"""


def _groups(plan: EpochPlan, catalog: Catalog) -> Iterator[Read]:
    for share in plan.shares:
        for segment in share.segments:
            first = int(catalog.group_offsets[catalog.index(segment.shard)])
            size = int(catalog.group_bytes[first + segment.group])
            flow = (_source(segment.sources, share.slot.node), share.slot.node)
            yield segment.exchanged, flow, size


def _footers(plans: Sequence[EpochPlan], catalog: Catalog) -> Iterator[Read]:
    """A rank reads the footer of each shard that it touches once, however often it reads its rows."""
    opened: dict[tuple[str, str], str] = {}
    for plan in plans:
        for share in plan.shares:
            for segment in share.segments:
                opened.setdefault((share.slot.node, segment.shard), _source(segment.sources, share.slot.node))
    for (node, shard), source in opened.items():
        yield False, (source, node), _footer(catalog, shard)


def _footer(catalog: Catalog, shard: str) -> int:
    return min(FOOTER_READ_BYTES, int(catalog.shard_bytes[catalog.index(shard)]))


def _source(sources: Sequence[str], node: str) -> str:
    return node if node in sources else sources[0]


def _rows(plan: EpochPlan) -> dict[str, int]:
    rows: dict[str, int] = {}
    for share in plan.shares:
        rows[share.slot.node] = rows.get(share.slot.node, 0) + share.samples
    return rows


def _add(amounts: dict[bool, dict[Flow, int]], reads: Iterable[Read], times: int) -> None:
    for exchanged, flow, size in reads:
        amounts[exchanged][flow] = amounts[exchanged].get(flow, 0) + size * times
