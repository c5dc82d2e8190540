"""Gangs for tests: nodes with real stores, shards of small real pictures, a sink that keeps what it gets, and plans by hand."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg

from datalocal.ledger.samples import decode_uses
from datalocal.placement.gang import EpochPlan, RankShare, RankSlot, Segment
from datalocal.spec.cluster import Cluster, Node
from datalocal.spec.job import Columns, Train
from datalocal.storage.server import StoreServer
from datalocal.storage.sink import Sink
from datalocal.tasks.code import pack
from datalocal.tasks.model import EpochWork, NodeContext, RowMask, TrainTask, Wiring

TOKEN = "t" * 32
SIDE = 16
CLASSES = ("0", "1", "2")

MODEL = """
import torch


def small(classes):
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16 * 16 * 3, 8), torch.nn.Tanh(), torch.nn.Linear(8, classes))


def wide(classes, batch_norm=False):
    middle = [torch.nn.BatchNorm1d(420)] if batch_norm else []
    layers = [torch.nn.Linear(16 * 16 * 3, 420), *middle, torch.nn.ReLU(), torch.nn.Linear(420, classes)]
    return torch.nn.Sequential(torch.nn.Flatten(), *layers)


class Broken(torch.nn.Module):
    def __init__(self, classes, rank):
        super().__init__()
        self.inner, self.rank, self.calls = small(classes), rank, 0

    def forward(self, images):
        self.calls += 1
        if torch.distributed.get_rank() == self.rank and self.calls == 3:
            raise ArithmeticError("the model does not like this batch")
        return self.inner(images)


def broken(classes, rank):
    return Broken(classes, rank)


def stuck(classes):
    import time
    print("ready to be stuck", flush=True)
    time.sleep(1000)


def not_a_number(outputs, labels):
    return torch.nn.functional.cross_entropy(outputs, labels) * float("nan")
"""


@dataclass(slots=True)
class Kept:
    """A sink's handler that keeps everything in memory."""

    logs: dict[str, str] = field(default_factory=dict)
    records: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    checkpoints: dict[str, pa.Buffer] = field(default_factory=dict)
    lock: Any = field(default_factory=threading.Lock)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def log(self, arm: str, task: str, text: str) -> None:
        with self.changed:
            self.logs[task] = self.logs.get(task, "") + text
            self.changed.notify_all()

    def record(self, kind: str, content: dict[str, Any]) -> None:
        with self.changed:
            self.records.append((kind, content))
            self.changed.notify_all()

    def put_checkpoint(self, arm: str, name: str, content: pa.Buffer) -> None:
        with self.lock:
            self.checkpoints[name] = content

    def get_checkpoint(self, arm: str, name: str) -> pa.Buffer:
        return self.checkpoints[name]

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The records of one kind, in order of arrival."""
        return [content for kind_, content in self.records if kind_ == kind]

    def uses(self, epoch: int = 0) -> dict[str, np.ndarray[Any, Any]]:
        """Uses of every row in an epoch, by shard, over all ranks and lines."""
        total: dict[str, np.ndarray[Any, Any]] = {}
        for line in self.of("samples"):
            if line["epoch"] == epoch:
                for shard, text in line["used"].items():
                    uses = decode_uses(text).astype(int)
                    total[shard] = total.get(shard, 0) + uses
        return total


@dataclass(slots=True, kw_only=True)
class World:
    """Nodes with stores, and a sink."""

    contexts: dict[str, NodeContext]
    kept: Kept
    wiring: Wiring
    shards: dict[str, tuple[str, list[int]]]
    """Key -> (node, rows of its row groups)."""

    def segments(self, node: str) -> list[Segment]:
        """Everything that lies on a node."""
        return [
            Segment(shard=shard, group=group, start=0, stop=rows, sources=(holder,))
            for shard, (holder, groups) in self.shards.items()
            if holder == node
            for group, rows in enumerate(groups)
        ]

    def masks(self) -> dict[str, RowMask]:
        return {shard: RowMask(rows=sum(groups)) for shard, (_, groups) in self.shards.items()}

    def tasks(
        self,
        shares: Sequence[tuple[str, list[Segment]]],
        steps: int,
        *,
        rendezvous: str = "",
        validate: bool = False,
        **changes: Any,
    ) -> list[TrainTask]:
        """A gang's tasks, one per node; `shares` by rank: (node, segments). `train` in `changes` is the job's section."""
        locals_: Counter[str] = Counter()
        ranks = []
        for rank, (node, segments) in enumerate(shares):
            slot = RankSlot(rank=rank, node=node, local_rank=locals_[node])
            locals_[node] += 1
            ranks.append(RankShare(slot=slot, segments=tuple(segments)))
        plan = EpochPlan(steps=steps, shares=tuple(ranks))
        train = Train.model_validate(
            {"model": "job_code:small", "image_size": SIDE, "device": "cpu"} | changes.pop("train", {})
        )
        works = [EpochWork(epoch=epoch, plan=plan, masks=self.masks()) for epoch in range(train.epochs)]
        first = replace(works[0], start_step=changes.pop("start_step", 0))
        nodes = tuple(sorted(locals_))
        return [
            TrainTask(
                **{
                    "id": f"train-{node}",
                    "arm": "data-local",
                    "stage": "train",
                    "node": node,
                    "attempt": 1,
                    "wiring": self.wiring,
                    "dataset": "photos",
                    "launch": 0,
                    "spec": train,
                    "columns": Columns(),
                    "labels": CLASSES,
                    "seed": 3,
                    "nodes": nodes,
                    "ranks_on_node": locals_[node],
                    "rendezvous": rendezvous,
                    "world": len(shares),
                    "device": "cpu",
                    "gpus": (),
                    "epochs": (first, *works[1:]),
                    "validation": replace(works[0], start_step=0) if validate else None,
                    "checkpoint": None,
                    **changes,
                }
            )
            for node in nodes
        ]


def picture(number: int) -> bytes:
    """A noisy picture whose brightness tells its class."""
    noise = np.random.default_rng(number).integers(0, 80, (SIDE, SIDE, 3))
    pixels = (noise + 80 * (number % 3)).clip(0, 255).astype(np.uint8)
    return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality=95))


@contextmanager
def world(
    folder: Path,
    shards: Mapping[str, tuple[str, list[int]]],
    *,
    nodes: Sequence[str] = ("a", "b"),
    code: Mapping[str, str] | None = None,
) -> Iterator[World]:
    """Nodes with folders and stores in this process, shards written to them, and a sink."""
    first = 0
    for shard, (node, groups) in shards.items():
        path = folder / node / "data" / "photos" / shard
        path.parent.mkdir(parents=True, exist_ok=True)
        numbers = range(first, first + sum(groups))
        table = pa.table(
            {"image": pa.array([picture(i) for i in numbers], pa.binary()), "label": [i % 3 for i in numbers]}
        )
        at = 0
        with pq.ParquetWriter(path, table.schema, compression="none", use_dictionary=False) as writer:
            for rows in groups:
                writer.write_table(table.slice(at, rows))
                at += rows
        first += sum(groups)
    job = folder / "job"
    job.mkdir()
    for name, text in ({"job_code.py": MODEL} | dict(code or {})).items():
        (job / name).write_text(text)
    hash_, packed = pack(job, 1_000_000)
    kept = Kept()
    contexts, servers = {}, []
    for node in nodes:
        root = folder / node
        root.mkdir(exist_ok=True)
        contexts[node] = NodeContext(name=node, root=root, token=TOKEN, cores=1, executor="test")
        servers.append(StoreServer(node=node, root=root, token=TOKEN))
    sink = Sink(token=TOKEN, code={hash_: packed}, handler=kept)
    try:
        yield World(
            contexts=contexts,
            kept=kept,
            wiring=Wiring(
                run="run",
                cluster=Cluster(name="test", replication=1, nodes=tuple(Node(name=node, rack="r") for node in nodes)),
                stores={node: server.location for node, server in zip(nodes, servers, strict=True)},
                sink=sink.location,
                code=hash_,
            ),
            shards=dict(shards),
        )
    finally:
        sink.close()
        for server in servers:
            server.close()
