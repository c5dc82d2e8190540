"""Which part of an arm's history counts: what survives a rollback, and from where the next launch goes on. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from datalocal.ledger.records import TaskRecord
from datalocal.ledger.samples import decode_uses
from datalocal.placement.epochs import Progress

Event = Mapping[str, Any]
_NAME = re.compile(r"^(?:.*/)?l(?P<launch>\d+)-e(?P<epoch>\d+)-s(?P<step>\d+)$")


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class CheckpointName:
    """`l{launch}-e{epoch}-s{step}`: what a checkpoint is called, ordered by how far it is."""

    epoch: int
    step: int
    launch: int

    @classmethod
    def parse(cls, name: str) -> CheckpointName:
        """Raises ValueError for anything else."""
        match = _NAME.match(name)
        if match is None:
            raise ValueError(f"{name!r} is not the name of a checkpoint")
        return cls(epoch=int(match["epoch"]), step=int(match["step"]), launch=int(match["launch"]))


def stages_finished(events: Iterable[Event]) -> set[str]:
    """Names of the stages that are done."""
    return {event["stage"] for event in events if event["type"] == "stage_finished"}


def finished_tasks(events: Iterable[Event], stage: str) -> list[TaskRecord]:
    """The last record of each shard of a stage."""
    records = {
        event["record"]["shard"]: TaskRecord.from_json(event["record"])
        for event in events
        if event["type"] == "task" and event["record"]["stage"] == stage
    }
    return list(records.values())


def next_launch(events: Iterable[Event], stage: str) -> int:
    """The number of the next launch of a stage's gang."""
    return 1 + max(
        (event["launch"] for event in events if event["type"] == "launch" and event["stage"] == stage), default=-1
    )


def latest_checkpoint(events: Iterable[Event], stage: str) -> str | None:
    """The complete checkpoint that is furthest, by name."""
    names = [event["name"] for event in events if event["type"] == "checkpoint" and event["stage"] == stage]
    return max(names, key=CheckpointName.parse, default=None)


def checkpoint_sha256(events: Iterable[Event], stage: str, name: str) -> str | None:
    """Hash of a checkpoint's content as it came in; None when no event of that name tells it."""
    for event in events:
        if event["type"] == "checkpoint" and event["stage"] == stage and event["name"] == name:
            sha256: str | None = event.get("sha256")
            return sha256
    return None


def surviving(events: Sequence[Event], stage: str, upto: str | None) -> tuple[list[Event], list[Event]]:
    """Samples lines that count on the way to checkpoint `upto`, and those that were rolled back.

    From `upto` back over the checkpoints that each launch began with: a launch's lines count up to the checkpoint from which
    the next one of the line went on.
    """
    lines = [event for event in events if event["type"] == "samples" and event["stage"] == stage]
    began = {
        event["launch"]: event["checkpoint"]
        for event in events
        if event["type"] == "launch" and event["stage"] == stage
    }
    limit: dict[int, tuple[int, int]] = {}
    name = upto
    while name is not None:
        checkpoint = CheckpointName.parse(name)
        limit[checkpoint.launch] = (checkpoint.epoch, checkpoint.step)
        name = began.get(checkpoint.launch)
    kept: list[Event] = []
    lost: list[Event] = []
    for line in lines:
        end = limit.get(line["launch"])
        inside = end is not None and line.get("checkpoint") and (line["epoch"], line["to_step"]) <= end
        (kept if inside else lost).append(line)
    return kept, lost


def latest_progress(events: Iterable[Event], stage: str) -> Progress | None:
    """From where the next launch goes on; None when there is no complete checkpoint."""
    history = list(events)
    name = latest_checkpoint(history, stage)
    if name is None:
        return None
    at = CheckpointName.parse(name)
    launches = {event["launch"]: event for event in history if event["type"] == "launch" and event["stage"] == stage}
    launch = launches[at.launch]
    epoch = next(entry for entry in launch["epochs"] if entry["epoch"] == at.epoch)
    used: dict[str, np.ndarray[Any, np.dtype[np.bool_]]] = {}
    for line in surviving(history, stage, name)[0]:
        if line["epoch"] == at.epoch:
            for key, text in line["used"].items():
                uses = decode_uses(text) > 0
                used[key] = used[key] | uses if key in used else uses
    return Progress(
        epoch=at.epoch,
        step=at.step,
        epoch_done=at.step >= epoch["last_step"],
        used=used,
        gang=launch["gang"] if epoch["whole"] else "",
    )
