"""One stage of an arm in figures: time, images, tasks, samples, accuracy, gradients. Pure, and at home in half a history."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from datalocal.ledger.accounting import stage_samples, total_samples
from datalocal.ledger.samples import Samples
from datalocal.report.mixture import mixing_figures
from datalocal.report.traffic import TIERS, farthest
from datalocal.spec.cluster import Cluster

Event = Mapping[str, Any]


def stage_figures(name: str, events: Sequence[Event], cluster: Cluster, *, over: bool) -> dict[str, Any]:
    """The figures of stage `name`. `over`: the arm has ended, so that what is open will not go on."""
    own = [event for event in events if _stage_of(event) == name]
    started = [event for event in own if event["type"] == "stage_started"]
    kind = started[-1]["kind"]
    seconds = _seconds(own)
    figures = _train(name, own, cluster, over) if kind == "train" else _independent(own, cluster, started[-1])
    finished = any(event["type"] == "stage_finished" for event in own)
    return {
        "name": name,
        "kind": kind,
        "seconds": seconds,
        "finished": finished,
        "nodes": started[-1]["nodes"],
        "images_per_second": figures["images"] / seconds if figures["images"] and seconds > 0 else None,
        **figures,
        "replaced": [
            {key: event[key] for key in ("shard", "from", "to", "cause", "attempt")}
            for event in own
            if event["type"] == "replaced"
        ],
    }


def _stage_of(event: Event) -> str | None:
    return event["record"]["stage"] if event["type"] == "task" else event.get("stage")


def windows(events: Sequence[Event]) -> list[tuple[Event, Event | None, float]]:
    """Start, end and seconds of each time a stage was worked on: several when the run was resumed.

    Without an end the seconds go to the last thing that was heard of the stage.
    """
    found: list[tuple[Event, Event | None, float]] = []
    last = 0.0
    for event in events:
        if event["type"] == "stage_started":
            if found and found[-1][1] is None:
                found[-1] = _open(found[-1][0], last)
            found.append(_open(event, event["time"]))
        elif event["type"] == "stage_finished" and found and found[-1][1] is None:
            found[-1] = (found[-1][0], event, event["seconds"])
        last = event["time"] if event["type"] != "meters" or event["when"] != "start" else last
    if found and found[-1][1] is None:
        found[-1] = _open(found[-1][0], last)
    return found


def _open(start: Event, until: float) -> tuple[Event, None, float]:
    return start, None, max(0.0, until - start["time"])


def _seconds(own: Sequence[Event]) -> float:
    return float(sum(seconds for _, _, seconds in windows(own)))


def _independent(own: Sequence[Event], cluster: Cluster, started: Event) -> dict[str, Any]:
    records = [event["record"] for event in own if event["type"] == "task"]
    last = {record["shard"]: record for record in records}
    again: Counter[str] = Counter(record["shard"] for record in records)
    again.update(event["shard"] for event in own if event["type"] == "replaced")
    tiers = Counter(farthest(cluster, record["bytes"], record["node"]) for record in last.values())
    read = sum(record["images_in"] for record in last.values())
    by_shard = {
        shard: {
            "seen": record["images_in"],
            "rolled_back": sum(r["images_in"] for r in records if r["shard"] == shard) - record["images_in"],
        }
        for shard, record in sorted(last.items())
    }
    expected = started["images_expected"] if started["kind"] == "preprocess" else read
    samples = Samples(
        expected=expected,
        seen=min(read, expected),
        repeated=max(0, read - expected),
        dropped=max(0, expected - read),
        rolled_back=sum(shard["rolled_back"] for shard in by_shard.values()),
    )
    return {
        "images": sum(record["images_out"] for record in last.values()),
        "accuracy": None,
        "tasks": {
            "total": len(last),
            **{text: tiers[tier] for tier, text in TIERS.items()},
            "retried": sum(1 for shard in last if again[shard] > 1 or last[shard]["attempt"] > 1),
        },
        "samples": asdict(samples),
        "samples_by_shard": by_shard,
        "damaged": [image for record in last.values() for image in record["damaged"]],
    }


def _train(name: str, own: Sequence[Event], cluster: Cluster, over: bool) -> dict[str, Any]:
    launches = {event["launch"]: event for event in own if event["type"] == "launch"}
    ranks = {(event["launch"], event["rank"]): event for event in own if event["type"] == "rank"}
    newest = max(launches, default=0)
    current = [event for (launch, _), event in ranks.items() if launch == newest]
    tiers = Counter(farthest(cluster, event["bytes"], event["node"]) for event in current)
    by_shard, samples = stage_samples(own, name), total_samples(own, name)
    accuracies = _accuracies(own, launches, over)
    launch = launches.get(newest, {})
    return {
        "images": samples.seen + samples.repeated,
        "accuracy": accuracies[max(accuracies)] if accuracies else None,
        "tasks": {
            "total": len(current),
            **{text: tiers[tier] for tier, text in TIERS.items()},
            "retried": launch.get("world", 0) if len(launches) > 1 else 0,
        },
        "samples": asdict(samples),
        "samples_by_shard": {shard: asdict(count) for shard, count in sorted(by_shard.items())},
        "epochs": [{"epoch": number, "accuracy": accuracies[number]} for number in sorted(accuracies)],
        "launches": len(launches),
        "device": launch.get("device"),
        "device_reason": launch.get("device_reason", ""),
        "gradients": gradients(list(ranks.values())),
        "mixing": mixing_figures(own),
        "damaged": [],
    }


def _accuracies(own: Sequence[Event], launches: Mapping[int, Event], over: bool) -> dict[int, float]:
    """By epoch: correct over total of all ranks of the newest launch that validated it."""
    parts: dict[int, dict[int, dict[int, Event]]] = {}
    for event in own:
        if event["type"] == "validation":
            parts.setdefault(event["epoch"], {}).setdefault(event["launch"], {})[event["rank"]] = event
    found: dict[int, float] = {}
    for epoch, by_launch in parts.items():
        for launch in sorted(by_launch, reverse=True):
            ranks = by_launch[launch]
            total = sum(event["total"] for event in ranks.values())
            whole = len(ranks) >= launches.get(launch, {}).get("world", len(ranks))
            if total and (whole or (over and len(by_launch) == 1)):  # a script may let one rank validate for all
                found[epoch] = sum(event["correct"] for event in ranks.values()) / total
                break
    return found


def gradients(ranks: Sequence[Event]) -> dict[str, Any] | None:
    """Gradient bytes three ways, summed over ranks and launches; None where nothing was exchanged."""
    figures = [event["gradients"] for event in ranks if event.get("gradients")]
    if not figures:
        return None
    payload = sum(figure["payload_bytes"] for figure in figures)
    known = all("theory_bytes" in figure for figure in figures)
    theory = sum(figure["theory_bytes"] for figure in figures) if known else None
    return {
        "logical_bytes": sum(figure["logical_bytes"] for figure in figures) if known else None,
        "payload_bytes": payload,
        "theory_bytes": theory,
        "ratio": payload / theory if theory else None,
    }
