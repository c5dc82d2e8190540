"""The three kinds of stage: copy shards, transform shards, train on shards."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from datalocal.catalog.model import Catalog
from datalocal.catalog.probe import probe
from datalocal.errors import DatasetError
from datalocal.execution.arm import Arm
from datalocal.execution.base import Leased, gpu
from datalocal.execution.dispatching import as_planned, dispatch_of
from datalocal.execution.independent import run_independent, task_id
from datalocal.execution.training import Checkpoints, run_training
from datalocal.ledger.records import TaskRecord
from datalocal.placement.epochs import Mask
from datalocal.placement.model import Assignment, StagePlan
from datalocal.placement.repair import current
from datalocal.spec.job import Validation
from datalocal.storage.counting import ByteCounter
from datalocal.tasks.model import AnyTask, PreprocessTask, RowMask, SelectTask, StagingTask


def staged_dataset(arm: Arm) -> str:
    """Where the arm's scratch copies lie on the central nodes."""
    return f"staged/{arm.wiring.run}/{arm.policy}/{arm.job.dataset}"


def output_dataset(arm: Arm) -> str:
    """Where the arm's preprocess stage writes: every run and arm its own, so that arms never read each other's results."""
    assert arm.job.preprocess is not None
    return f"{arm.job.preprocess.output}/{arm.wiring.run}/{arm.policy}"


def input_dataset(arm: Arm, stage: StagePlan) -> str:
    """The data set that a stage reads; of `cached` that of the copies."""
    return {
        "dataset": lambda: arm.job.dataset,
        "staged": lambda: staged_dataset(arm),
        "cached": lambda: staged_dataset(arm),
        "output": lambda: output_dataset(arm),
    }[stage.input]()


def catalogue(arm: Arm, dataset: str, stage: str) -> Catalog:
    """The data set as it lies on the nodes that are alive now; what that costs on the wire is recorded."""
    counter = ByteCounter()
    store = arm.open_store(counter)
    try:
        catalog = probe(store, arm.cluster, dataset, arm.job.columns, list(arm.executor.facts()))
        if catalog.warnings:
            arm.record("catalog", stage=stage, dataset=dataset, warnings=list(catalog.warnings))
        return catalog
    finally:
        store.close()
        arm.record("bytes", stage=stage, rows=[row.to_json() for row in counter.rows()])


def catalogue_of(arm: Arm, stage: StagePlan, base: Catalog) -> Catalog:
    """What a stage reads; `base` is the catalog of the job's data set.

    Copies that are gone with their nodes are not missed where the data set stands in for them.
    """
    if stage.input == "dataset":
        return base
    if stage.input != "cached":
        return catalogue(arm, input_dataset(arm, stage), stage.name)
    try:
        return base.with_copies(catalogue(arm, input_dataset(arm, stage), stage.name))
    except DatasetError:
        return base


def run_stage(
    arm: Arm, stage: StagePlan, catalog: Catalog, finished: Iterable[TaskRecord], checkpoints: Checkpoints, launch: int
) -> None:
    """Run one stage of an arm from where the ledger says it is. `catalog` is what the stage reads.

    `finished` are the records of tasks that are done already; `launch` is the number of the next launch of a gang.
    """
    began = time.monotonic()
    arm.record("meters", stage=stage.name, when="start", hosts=dict(arm.executor.meters()))
    arm.record(
        "stage_started",
        stage=stage.name,
        kind=stage.kind,
        nodes=list(stage.nodes),
        shards=len(catalog) if stage.kind != "staging" else len(stage.assignments),
        images_expected=catalog.total_rows,
    )
    if stage.kind == "train":
        images = _train(arm, stage, catalog, checkpoints, launch)
    else:
        images = _independent(arm, stage, catalog, finished)
    arm.executor.rest()
    arm.record("meters", stage=stage.name, when="end", hosts=dict(arm.executor.meters()))
    arm.record("stage_finished", stage=stage.name, seconds=time.monotonic() - began, images=images)


def _independent(arm: Arm, stage: StagePlan, catalog: Catalog, finished: Iterable[TaskRecord]) -> int:
    done = {record.shard: record for record in finished}
    images = sum(record.images_out for record in done.values())

    def make(assignment: Assignment, attempt: int) -> AnyTask:
        return _task(arm, stage, assignment, attempt, catalog)

    def keep(task: AnyTask, result: Any) -> None:
        nonlocal images
        assert isinstance(result, TaskRecord)
        images += result.images_out
        arm.record("task", record=result.to_json())

    with arm.executor.lease(_gpus_of(arm, stage), arm.cancelled.is_set):
        todo = [assignment for assignment in stage.assignments if assignment.shard not in done]
        run_independent(arm, stage.name, dispatch_of(arm, stage, todo, catalog), make_task=make, on_result=keep)
    return images


def _gpus_of(arm: Arm, stage: StagePlan) -> list[Leased]:
    """The GPUs that the stage's transforms may use: all that its nodes see, since a transform takes the one it likes."""
    if stage.kind != "preprocess" or arm.job.preprocess is None or arm.job.preprocess.device == "cpu":
        return []
    facts = arm.executor.facts()
    return [gpu(str(each["uuid"])) for name, told in facts.items() if name in stage.nodes for each in told.gpus]


def _task(arm: Arm, stage: StagePlan, assignment: Assignment, attempt: int, catalog: Catalog) -> AnyTask:
    common = {
        "id": task_id(arm.policy, stage.name, assignment.shard),
        "arm": arm.policy,
        "stage": stage.name,
        "node": assignment.node,
        "attempt": attempt,
        "wiring": arm.wiring,
        "dataset": catalog.dataset,
        "shard": assignment.shard,
        "sources": assignment.sources,
        "reason": assignment.reason,
    }
    if stage.kind == "staging":
        return StagingTask(**common, destination=staged_dataset(arm))  # type: ignore[arg-type]  # a dict of the fields above
    assert arm.job.preprocess is not None
    return PreprocessTask(
        **common,  # type: ignore[arg-type]  # a dict of the fields above
        outputs=assignment.outputs,
        destination=output_dataset(arm),
        columns=arm.job.columns,
        spec=arm.job.preprocess,
        seed=arm.job.seed,
        cut=arm.cut,
    )


def _train(arm: Arm, stage: StagePlan, catalog: Catalog, checkpoints: Checkpoints, launch: int) -> int:
    train = arm.job.train
    assert train is not None

    def place(alive: Collection[str]) -> Sequence[Assignment]:
        return current(stage, catalog, arm.cluster, alive, train.gang)

    chosen = _validation_masks(arm, stage, catalog, place(arm.executor.facts()), train.validation)
    rows = {key: int(catalog.shard_rows[i]) for i, key in enumerate(catalog.shards)}
    validation = {key: mask for key, mask in chosen.items() if mask.any()}
    masks = {key: ~chosen[key] if key in chosen else np.ones(count, dtype=bool) for key, count in rows.items() if count}
    masks = {key: mask for key, mask in masks.items() if mask.any()}
    if not masks:
        raise DatasetError(
            f"{catalog.dataset}: no row is left to train on ({catalog.total_rows} rows, all of them validate)",
            "see `train.validation` in the job file",
        )
    run_training(arm, stage.name, catalog, place, masks, validation, checkpoints=checkpoints, first_launch=launch)
    return train.epochs * int(sum(mask.sum() for mask in masks.values()))


def _validation_masks(
    arm: Arm, stage: StagePlan, catalog: Catalog, assignments: Sequence[Assignment], validation: Validation | None
) -> Mapping[str, Mask]:
    """Rows that validate, by shard key. A fraction needs no reading; a column or a function is asked where the shard is."""
    if validation is None:
        return {}
    if validation.fraction is not None:
        from datalocal.tasks.select import fraction_mask

        return {
            key: fraction_mask(arm.job.seed, key, int(catalog.shard_rows[i]), validation.fraction)
            for i, key in enumerate(catalog.shards)
        }
    masks: dict[str, Mask] = {}

    def make(assignment: Assignment, attempt: int) -> AnyTask:
        return SelectTask(
            id=task_id(arm.policy, f"{stage.name}-select", assignment.shard),
            arm=arm.policy,
            stage=stage.name,
            node=assignment.node,
            attempt=attempt,
            wiring=arm.wiring,
            dataset=catalog.where(assignment.shard),
            shard=assignment.shard,
            sources=assignment.sources,
            columns=arm.job.columns,
            validation=validation,
            seed=arm.job.seed,
        )

    def keep(task: AnyTask, result: Any) -> None:
        assert isinstance(task, SelectTask)
        assert isinstance(result, RowMask)
        masks[task.shard] = unpack(result)

    run_independent(arm, stage.name, as_planned(arm, stage, assignments, catalog), make_task=make, on_result=keep)
    return masks


def unpack(mask: RowMask) -> Mask:
    """The bool array of a packed mask."""
    if mask.packed is None:
        return np.ones(mask.rows, dtype=bool)
    return np.unpackbits(np.frombuffer(mask.packed, dtype=np.uint8), count=mask.rows).astype(bool)
