"""Histories of arms as the run process records them, built by hand: for tests of what is made of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from datalocal.ledger.records import ByteRow, Damaged, TaskRecord, TrafficClass
from datalocal.ledger.samples import encode_uses
from datalocal.spec.cluster import Cluster, Node, PowerProfile

NODES = ("node1", "node2", "node3", "node4")
CENTRAL = "central1"
STARTED = 1_700_000_000.0


def cluster(*, shared_host: bool = True, power: PowerProfile | None = None) -> Cluster:
    """Four storage nodes in two racks and a central one."""
    nodes = [Node(name=name, rack=f"rack{1 + place // 2}") for place, name in enumerate(NODES)]
    central = Node(name=CENTRAL, rack="central", role="compute", cores=2)
    return Cluster(name="embedded", replication=2, shared_host=shared_host, power=power, nodes=(*nodes, central))


def manifest(*policies: str, on: Cluster | None = None, **changes: Any) -> dict[str, Any]:
    job = {
        "name": "resize-then-train",
        "dataset": "photos",
        "seed": 7,
        "policies": list(policies),
        "train": {"epochs": 2},
    }
    return {
        "schema": "datalocal.run/1",
        "id": "story-1",
        "job": job,
        "job_file": "/somewhere/job.yaml",
        "cluster": (on or cluster()).model_dump(mode="json"),
        "policies": list(policies),
        "seed": 7,
        "executor": "dask",
        "version": "0.1.0",
        "python": "3.11.9",
        "started": STARTED,
        "hosts": {},
        "code": "c0de",
        **changes,
    }


def reading(at: float, *, busy: float = 0.0, total: float = 0.0, meter: str = "m1", **meters: Any) -> dict[str, Any]:
    """One reading of a host without meters, unless some are given."""
    return {
        "host": "machine",
        "meter": meter,
        "time": STARTED + at,
        "monotonic": at,
        "cpu_busy_seconds": busy,
        "cpu_total_seconds": total,
        "rapl": [{"zone": "cpu", "joules": None, "reason": "no_meter: no powercap here", "gaps": 0}],
        "gpus": [{"uuid": "", "joules": None, "reason": "no_gpu: no library", "gaps": 0}],
        **meters,
    }


def row(class_: TrafficClass, source: str, destination: str, count: int) -> ByteRow:
    return ByteRow(class_=class_, source=source, destination=destination, bytes=count)


@dataclass(slots=True)
class Story:
    """The events of one arm, with a clock that goes on by a second with each."""

    policy: str
    events: list[dict[str, Any]] = field(default_factory=list)
    clock: float = 0.0

    def add(self, type_: str, **content: Any) -> Story:
        self.clock += 1
        self.events.append({"type": type_, "time": STARTED + self.clock, **content})
        return self

    def start(self, stage: str, kind: str, *, images: int = 0, nodes: Sequence[str] = NODES, shards: int = 4) -> Story:
        self.meters(stage, "start")
        return self.add(
            "stage_started", stage=stage, kind=kind, nodes=list(nodes), shards=shards, images_expected=images
        )

    def meters(self, stage: str, when: str, **changes: Any) -> Story:
        now = reading(self.clock, busy=self.clock, total=2 * self.clock, **changes)
        return self.add("meters", stage=stage, when=when, hosts={"host-1": now})

    def finish(self, stage: str, *, seconds: float, images: int) -> Story:
        self.meters(stage, "end")
        return self.add("stage_finished", stage=stage, seconds=seconds, images=images)

    def task(
        self,
        stage: str,
        shard: str,
        node: str,
        *rows: ByteRow,
        kind: Any = "preprocess",
        images: int = 10,
        outputs: Sequence[str] = (),
        reason: str = "",
        attempt: int = 1,
        damaged: Sequence[Damaged] = (),
    ) -> Story:
        record = TaskRecord(
            kind=kind,
            task=f"{self.policy}.{stage}.{shard}",
            arm=self.policy,
            stage=stage,
            shard=shard,
            planned_node=node,
            node=node,
            attempt=attempt,
            executor="dask",
            started=STARTED + self.clock,
            seconds=1.0,
            images_in=images,
            images_out=images - len(damaged),
            output_nodes=tuple(outputs),
            reason=reason,
            damaged=tuple(damaged),
            bytes=rows,
        )
        return self.add("task", record=record.to_json())

    def epoch(self, epoch: int, shards: dict[str, int], stage: str = "train") -> Story:
        expected = {key: encode_uses(np.ones(count, np.uint8)) for key, count in shards.items()}
        return self.add("epoch", stage=stage, epoch=epoch, expected=expected)

    def launch(
        self, number: int, *, world: int = 2, checkpoint: str | None = None, stage: str = "train", device: str = "cpu"
    ) -> Story:
        return self.add(
            "launch",
            stage=stage,
            launch=number,
            nodes=list(NODES[:world]),
            world=world,
            device=device,
            device_reason="no node has a GPU",
            checkpoint=checkpoint,
            gang="g",
            epochs=[],
            steps=10,
        )

    def samples(
        self,
        launch: int,
        rank: int,
        epoch: int,
        steps: tuple[int, int],
        used: dict[str, list[int]],
        stage: str = "train",
    ) -> Story:
        """What a rank used from one checkpoint to the next: uses of each row by shard."""
        return self.add(
            "samples",
            arm=self.policy,
            stage=stage,
            launch=launch,
            rank=rank,
            node=NODES[rank],
            epoch=epoch,
            from_step=steps[0],
            to_step=steps[1],
            used={key: encode_uses(np.array(uses, np.uint8)) for key, uses in used.items()},
            checkpoint=f"l{launch}-e{epoch}-s{steps[1]}",
        )

    def checkpoint(self, launch: int, epoch: int, step: int, stage: str = "train") -> Story:
        return self.add(
            "checkpoint",
            stage=stage,
            launch=launch,
            name=f"l{launch}-e{epoch}-s{step}",
            epoch=epoch,
            step=step,
            bytes=1000,
        )

    def validation(self, launch: int, rank: int, epoch: int, correct: int, total: int, stage: str = "train") -> Story:
        return self.add(
            "validation", stage=stage, launch=launch, rank=rank, epoch=epoch, correct=correct, total=total, loss_sum=1.0
        )

    def rank(
        self, launch: int, rank: int, *rows: ByteRow, gradients: dict[str, float] | None = None, stage: str = "train"
    ) -> Story:
        return self.add(
            "rank",
            kind="rank",
            arm=self.policy,
            stage=stage,
            launch=launch,
            rank=rank,
            world=2,
            node=NODES[rank],
            device="cpu",
            seconds=5.0,
            steps=10,
            images=100,
            bytes=[r.to_json() for r in rows],
            gradients=gradients or {},
            seconds_by_step={},
        )

    def end(self, state: str = "completed", error: str | None = None, **not_local: str) -> Story:
        rows = [{"shard": shard, "reason": reason, "stage": "train"} for shard, reason in not_local.items()]
        return self.add("arm_finished", state=state, error=error, not_local=rows)
