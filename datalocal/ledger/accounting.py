"""The samples of a train stage over all its epochs, launches and rollbacks, by shard. Pure: events in, numbers out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from datalocal.ledger.lineage import Event, latest_checkpoint, surviving
from datalocal.ledger.samples import Samples, Uses, account, decode_uses


def stage_samples(events: Sequence[Event], stage: str) -> dict[str, Samples]:
    """By shard key: what was expected of all epochs together, and what the surviving line of launches used of it.

    Expected rows that the surviving line has not used are `dropped`, also while the stage is not finished.
    """
    expected: dict[int, Mapping[str, Uses]] = {
        event["epoch"]: {key: decode_uses(text) for key, text in event["expected"].items()}
        for event in events
        if event["type"] == "epoch" and event["stage"] == stage
    }
    kept, lost = surviving(events, stage, latest_checkpoint(events, stage))
    found: dict[str, Samples] = {}
    for epoch in sorted(expected.keys() | {line["epoch"] for line in kept}):
        used = [line["used"] for line in kept if line["epoch"] == epoch]
        for key, samples in account(expected.get(epoch, {}), used).items():
            found[key] = found.get(key, Samples()) + samples
    for key, uses in _rolled_back_uses(events, stage, lost).items():
        before = found.get(key, Samples())
        found[key] = replace(before, rolled_back=before.rolled_back + uses)
    return found


def total_samples(events: Sequence[Event], stage: str) -> Samples:
    """The sum over shards, plus what a failed launch did without a line of its own (`rolled_back` events)."""
    total = sum(stage_samples(events, stage).values(), Samples())
    told = sum(int(event["samples"]) for event in events if event["type"] == "rolled_back" and event["stage"] == stage)
    return replace(total, rolled_back=total.rolled_back + told)


def _rolled_back_uses(events: Sequence[Event], stage: str, lost: Iterable[Event]) -> dict[str, int]:
    """Uses in lines that a later launch did not go on from. What a `rolled_back` event tells already is left out, and so
    are lines of the last launch: their checkpoint may still become complete."""
    launches = [event["launch"] for event in events if event["type"] == "launch" and event["stage"] == stage]
    told = [event for event in events if event["type"] == "rolled_back" and event["stage"] == stage]
    uses: dict[str, int] = {}
    for line in lost:
        if line["launch"] >= max(launches, default=0) or any(_tells(event, line) for event in told):
            continue
        for key, text in line["used"].items():
            uses[key] = uses.get(key, 0) + int(decode_uses(text).sum())
    return uses


def _tells(event: Mapping[str, Any], line: Mapping[str, Any]) -> bool:
    """Whether the `rolled_back` event counts the samples of this line: the launch's steps from there on, of all ranks."""
    same = (event["launch"], event["epoch"]) == (line["launch"], line["epoch"])
    return same and event["from_step"] <= line["from_step"] and line["to_step"] <= event["to_step"]
