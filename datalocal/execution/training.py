"""Run a train stage: gather the gang, watch it, and when a node dies gather it again from the last checkpoint.

A gang is one elastic launch without restarts: whatever kills a rank ends the launch in seconds, and what follows is a fresh
launch on the nodes that are left, with the rows that the surviving line has not used yet.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from datalocal.catalog.model import Catalog
from datalocal.errors import TaskError
from datalocal.execution.arm import Arm
from datalocal.execution.base import NodeLost, TaskDone, TaskFailed, gpu, training_slot
from datalocal.ledger.samples import encode_uses
from datalocal.placement.devices import Devices, choose_devices
from datalocal.placement.epochs import Epoch, Mask, Progress, plan_epochs, slots_of
from datalocal.placement.mixing import mixing
from datalocal.placement.model import Assignment
from datalocal.placement.quota import label_mixes
from datalocal.placement.shuffles import shuffle_named
from datalocal.spec.job import Train
from datalocal.tasks.model import EpochWork, RowMask, TrainTask
from datalocal.tasks.shard_file import GROUP_BYTES
from datalocal.tasks.train.order import WINDOW_GROUPS, WINDOW_IMAGES

WINDOW_BYTES = 256 << 20
"""Images of a window where rows are dealt one by one: with fewer, a rank's neighbours in a batch would come from few row groups.
Two windows are in memory at a time."""

GRACE_SECONDS = 8.0
"""After the first failure of a gang: how long to listen for the node whose loss explains it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoints:
    """What the stage needs of the ledger: the surviving line so far."""

    progress: Callable[[], Progress | None]
    name: Callable[[], str | None]
    """Name of the checkpoint that `progress` stands on."""
    sha256: Callable[[], str | None]
    """Of its content."""


@dataclass(slots=True, kw_only=True)
class Gang:
    """One launch: what was asked of which node, and what has come back."""

    tasks: dict[str, TrainTask]
    done: set[str] = field(default_factory=set)
    failed: list[TaskFailed] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)

    @property
    def nodes(self) -> tuple[str, ...]:
        return tuple(task.node for task in self.tasks.values())


def run_training(
    arm: Arm,
    stage: str,
    catalog: Catalog,
    place: Callable[[Collection[str]], Sequence[Assignment]],
    masks: Mapping[str, Mask],
    validation: Mapping[str, Mask],
    *,
    checkpoints: Checkpoints,
    first_launch: int,
) -> None:
    """Train to the last epoch.

    `place` says which node trains on which shard, given the nodes that are alive. `masks` and `validation` select rows by
    shard key. Raises TaskError with the first trace when user code fails, or when the launches are used up.
    """
    train = arm.job.train
    assert train is not None
    expected = {key: encode_uses(mask.astype(np.uint8)) for key, mask in masks.items()}
    for epoch in range(train.epochs):
        arm.record("epoch", stage=stage, epoch=epoch, expected=expected)
    launch = first_launch
    while True:
        facts = arm.executor.facts()
        assignments = place(facts)
        nodes = sorted({assignment.node for assignment in assignments})
        seen = {node: [str(told["uuid"]) for told in facts[node].gpus] for node in nodes}
        devices = choose_devices(train.device, train.gpus, nodes, seen)
        slots = slots_of(nodes, {node: devices.ranks_on(node) for node in nodes})
        schedule = plan_epochs(
            catalog,
            assignments,
            masks,
            slots,
            batch=train.batch,
            epochs=train.epochs,
            progress=checkpoints.progress(),
            shuffle=shuffle_named(train.shuffle, arm.job.seed, train.exchange),
            mixes=label_mixes(catalog) if train.class_quota else None,
        )
        works = schedule.epochs
        if not works:
            return
        divided = (
            plan_epochs(catalog, assignments, validation, slots, batch=train.batch, epochs=1, together=False).epochs[0]
            if validation
            else None
        )
        gang = _launch(arm, stage, catalog, train, works, divided, devices, launch, checkpoints)
        arm.record(
            "launch",
            stage=stage,
            launch=launch,
            nodes=list(nodes),
            world=len(slots),
            device=devices.device,
            device_reason=devices.reason,
            checkpoint=checkpoints.name(),
            gang=schedule.gang,
            epochs=[
                {
                    "epoch": work.epoch,
                    "first_step": work.first_step,
                    "start_step": work.start_step,
                    "last_step": work.last_step,
                    "whole": work.first_step == 0,
                }
                for work in works
            ],
            steps=sum(work.plan.steps - work.start_step for work in works),
        )
        _record_mixing(arm, stage, catalog, works, launch)
        leased = [gpu(uuid) for uuids in devices.gpus.values() for uuid in uuids]
        leased += [training_slot(node, arm.cluster.node(node).slots) for node in nodes]
        with arm.executor.lease(leased, arm.cancelled.is_set), arm.executor.rendezvous() as endpoint:
            for task in gang.tasks.values():
                arm.executor.start(replace(task, rendezvous=endpoint))
            try:
                _watch(arm, gang)
            finally:
                arm.executor.abandon([task for task in gang.tasks.values() if task.id not in gang.done])
        if len(gang.done) == len(gang.tasks):
            return
        _record_rollback(arm, stage, launch, works, checkpoints.progress())
        launch += 1
        _explain_or_raise(arm, stage, gang, attempt=launch - first_launch)


def _watch(arm: Arm, gang: Gang) -> None:
    """Listen until every node is done, or until the launch has failed and its cause is known."""
    deadline: float | None = None
    for event in arm.events():
        match event:
            case TaskDone(task=task) if task.id in gang.tasks:
                gang.done.add(task.id)
            case TaskFailed(task=task) if task.id in gang.tasks:
                gang.failed.append(event)
            case NodeLost(node=node):
                arm.record("node_lost", node=node)
                if node in gang.nodes:
                    gang.lost.append(node)
        ended = len(gang.done) + len(gang.failed) + len(set(gang.lost))
        if len(gang.done) == len(gang.tasks) or (gang.lost and ended >= len(gang.tasks)):
            return
        if (gang.failed or gang.lost) and deadline is None:
            deadline = time.monotonic() + GRACE_SECONDS
        if deadline is not None and time.monotonic() > deadline:
            return
        if gang.failed and ended >= len(gang.tasks) and _own_fault(arm) is not None:
            return


def _own_fault(arm: Arm) -> Mapping[str, Any] | None:
    """The first failure that is a rank's own and would happen again anywhere; None when ranks only lost each other."""
    return next((failure for failure in list(arm.failures) if failure.get("kind") == "task"), None)


def _explain_or_raise(arm: Arm, stage: str, gang: Gang, *, attempt: int) -> None:
    """After a failed launch: return to gather the gang again, or raise what the user has to mend."""
    first = _own_fault(arm)
    if first is not None and not gang.lost:
        raise TaskError(
            str(first["node"]),
            stage,
            str(first["cause"]),
            str(first.get("trace", "")),
            arm.log_path(f"{stage}-rank{first['rank']}"),
            str(first.get("hint") or "mend the code and resume the run: it goes on from its last checkpoint"),
        )
    arm.failures.clear()
    if gang.lost or attempt < arm.job.max_attempts:
        return
    failed = gang.failed[0]
    raise TaskError(
        failed.task.node,
        stage,
        f"{failed.cause} (launch {attempt} of {arm.job.max_attempts})",
        failed.trace,
        arm.log_path(failed.task.id),
        failed.hint or "resume the run: it goes on from its last checkpoint",
    )


def _record_rollback(arm: Arm, stage: str, launch: int, works: Sequence[Epoch], progress: Progress | None) -> None:
    """Tell what the failed launch did after the last complete checkpoint: it is lost and will be done again.

    All ranks make the same steps, so the furthest step that one of them reached tells the samples of all, also of the rank
    that is gone.
    """
    reached = max(((int(f["epoch"]), int(f["step"])) for f in list(arm.failures) if "step" in f), default=None)
    if reached is None:
        return
    epoch, step = reached
    work = next((work for work in works if work.epoch == epoch), None)
    if work is None:
        return
    kept = work.first_step + work.start_step
    if progress is not None and progress.epoch == epoch:
        kept = max(kept, progress.step)
    lost = range(kept - work.first_step, step - work.first_step)
    samples = sum(sum(work.plan.step_samples(number)) for number in lost)
    arm.record("rolled_back", stage=stage, launch=launch, epoch=epoch, from_step=kept, to_step=step, samples=samples)


def _record_mixing(arm: Arm, stage: str, catalog: Catalog, works: Sequence[Epoch], launch: int) -> None:
    """What the launch's whole epochs change from one to the next; what is left of an epoch cannot be compared with another."""
    train = arm.job.train
    assert train is not None
    rows = {key: catalog.groups(number).tolist() for number, key in enumerate(catalog.shards)}
    whole = [work for work in works if work.first_step == 0]
    figures = mixing(
        ((work.epoch, work.plan) for work in whole), rows, row_by_row=any(work.row_by_row for work in works)
    )
    arm.record(
        "mixing",
        stage=stage,
        launch=launch,
        shuffle=train.shuffle,
        exchange=train.exchange,
        epochs=[asdict(epoch) for epoch in figures],
        class_quota={str(work.epoch): asdict(work.quota) for work in whole if work.quota is not None},
    )


def _launch(
    arm: Arm,
    stage: str,
    catalog: Catalog,
    train: Train,
    works: Sequence[Epoch],
    validation: Epoch | None,
    devices: Devices,
    launch: int,
    checkpoints: Checkpoints,
) -> Gang:
    """The tasks of one launch, by id; the rendezvous is filled in when it listens."""
    nodes = sorted({share.slot.node for share in works[0].plan.shares})
    world = len(works[0].plan.shares)
    checkpoint, sha256 = checkpoints.name(), checkpoints.sha256()
    packed: dict[int, dict[str, RowMask]] = {}
    row_bytes = arm.row_bytes if arm.row_bytes is not None else catalog.total_bytes / max(catalog.total_rows, 1)
    epochs = [_works(work, row_bytes, packed) for work in works]
    validated = _works(validation, row_bytes, packed) if validation else {}
    tasks = [
        TrainTask(
            id=f"{arm.policy}.{stage}.{node}",
            arm=arm.policy,
            stage=stage,
            node=node,
            attempt=launch + 1,
            wiring=arm.wiring,
            dataset=catalog.dataset,
            copies=catalog.copies,
            copied=_copied(catalog, [*epochs, validated], node),
            launch=launch,
            spec=train,
            columns=arm.job.columns,
            labels=catalog.labels,
            seed=arm.job.seed,
            nodes=tuple(nodes),
            ranks_on_node=devices.ranks_on(node),
            rendezvous="",
            world=world,
            device=devices.device,
            gpus=tuple(devices.gpus.get(node, ())),
            epochs=tuple(epoch[node] for epoch in epochs),
            validation=validated.get(node),
            checkpoint=checkpoint,
            checkpoint_sha256=sha256,
            cut=arm.cut,
        )
        for node in nodes
    ]
    return Gang(tasks={task.id: task for task in tasks})


def _copied(catalog: Catalog, works: Sequence[Mapping[str, EpochWork]], node: str) -> frozenset[str]:
    """Those shards of the node's work that are read from copies."""
    if not catalog.copied:
        return frozenset()
    return catalog.copied.intersection(key for work in works if node in work for key in work[node].masks)


def _works(epoch: Epoch, row_bytes: float, packed: dict[int, dict[str, RowMask]]) -> dict[str, EpochWork]:
    """What each node is sent of an epoch: what its own ranks do, and no more of the others' than how much.

    `packed` keeps masks by identity: epochs share them.
    """
    masks = packed.setdefault(id(epoch.masks), {})
    window_groups = _window_groups(epoch, row_bytes)
    found: dict[str, EpochWork] = {}
    for node, plan in epoch.plan.by_node().items():
        keys = {segment.shard for share in plan.shares for segment in share.segments}
        for key in keys - masks.keys():
            mask = epoch.masks[key]
            masks[key] = RowMask(rows=len(mask), packed=None if mask.all() else np.packbits(mask).tobytes())
        found[node] = EpochWork(
            epoch=epoch.epoch,
            plan=plan,
            masks={key: masks[key] for key in sorted(keys)},
            start_step=epoch.start_step,
            first_step=epoch.first_step,
            row_by_row=epoch.row_by_row,
            window_groups=window_groups,
        )
    return found


def _window_groups(epoch: Epoch, row_bytes: float) -> int:
    """As many row groups, or pieces of them, as a window has room for: of a small data set, all that a rank has.

    Where row groups stay whole, that is for WINDOW_IMAGES, in no more memory than the usual number of the largest takes.
    """
    pieces = max(sum(len(share.segments) for share in epoch.plan.shares), 1)
    piece_rows = epoch.plan.samples / pieces
    piece_bytes = piece_rows * row_bytes
    room = WINDOW_BYTES / max(piece_bytes, 1.0)
    if not epoch.row_by_row:
        room = min(WINDOW_IMAGES / max(piece_rows, 1.0), WINDOW_GROUPS * GROUP_BYTES / max(piece_bytes, 1.0))
    return max(WINDOW_GROUPS, int(room))
