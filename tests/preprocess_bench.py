"""A node or two with real stores and a sink, a shard of small real JPEGs, and a job's own transform, for tests of preprocessing."""

from __future__ import annotations

import textwrap
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg

from datalocal.ledger.records import TaskRecord
from datalocal.spec.cluster import Cluster, Node
from datalocal.spec.job import Columns, Preprocess
from datalocal.storage.server import StoreServer
from datalocal.storage.sink import Sink
from datalocal.tasks.code import pack
from datalocal.tasks.model import NodeContext, PreprocessTask, StagingTask, Wiring
from datalocal.tasks.preprocess import run_preprocess

TOKEN = "t" * 32

CODE = textwrap.dedent(
    """
    import numpy as np

    calls = []

    def half(images, device):
        return [np.ascontiguousarray(image[::2, ::2]) for image in images]

    def lie(images, device):
        return half(images, device)[1:]

    def inner(images):
        raise ArithmeticError("no such light")

    def broken(images, device):
        return inner(images)

    def keep(images, device, prefix):
        return [prefix.encode() + bytes([image.shape[0]]) for image in images]

    def features(images, device, shape=(4,)):
        return np.stack([np.full(shape, image.mean(), np.float32) for image in images])

    def words(images, device):
        return ["word" for image in images]

    class Bright:
        made = 0
        def __init__(self, device, add):
            Bright.made += 1
            assert Bright.made == 1, "made once"
            self.add, self.device = add, device
        def __call__(self, images):
            assert self.device == "cpu"
            return [np.clip(image.astype(int) + self.add, 0, 255).astype(np.uint8) for image in images]
    """
)


@dataclass(slots=True)
class Kept:
    """A sink's handler that keeps the logs."""

    logs: dict[str, str] = field(default_factory=dict)
    lock: Any = field(default_factory=threading.Lock)

    def log(self, arm: str, task: str, text: str) -> None:
        with self.lock:
            self.logs[task] = self.logs.get(task, "") + text

    def record(self, kind: str, content: dict[str, Any]) -> None:
        raise AssertionError(f"nobody sends {kind} here")

    def put_checkpoint(self, arm: str, name: str, content: pa.Buffer) -> None:
        raise AssertionError("no checkpoints here")

    def get_checkpoint(self, arm: str, name: str) -> pa.Buffer:
        raise AssertionError("no checkpoints here")


def picture(number: int, side: int = 32) -> bytes:
    """A noisy JPEG."""
    pixels = np.random.default_rng(number).integers(0, 255, (side, side, 3)).astype(np.uint8)
    return bytes(simplejpeg.encode_jpeg(pixels, quality=90))


@dataclass(slots=True, kw_only=True)
class Bench:
    """Nodes with stores, a sink, and what it was told."""

    root: Path
    contexts: dict[str, NodeContext]
    kept: Kept
    wiring: Wiring

    def shard(self, table: pa.Table, *, node: str = "a", key: str = "part-0.parquet", group: int = 10) -> None:
        """Lay a shard into a node's folder."""
        path = self.root / node / "data" / "photos" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table, path, row_group_size=group, compression="none", use_dictionary=False)

    def task(self, transform: str = "half", *, node: str = "a", **changes: Any) -> PreprocessTask:
        """A task for the shard on node a; `changes` go to the job's section where it has such a key."""
        spec = {key: changes.pop(key) for key in list(changes) if key in Preprocess.model_fields}
        return PreprocessTask(
            **{
                "id": "preprocess-part-0",
                "arm": "data-local",
                "stage": "preprocess",
                "node": node,
                "attempt": 1,
                "wiring": self.wiring,
                "dataset": "photos",
                "shard": "part-0.parquet",
                "sources": ("a",),
                "outputs": (node,),
                "destination": "small/run/data-local",
                "columns": Columns(),
                "spec": Preprocess.model_validate(
                    {
                        "transform": transform if ":" in transform else f"job_code:{transform}",
                        "output": "small",
                        "batch": 4,
                    }
                    | spec
                ),
                "seed": 1,
                **changes,
            }
        )

    def run(self, transform: str = "half", *, node: str = "a", **changes: Any) -> tuple[TaskRecord, pa.Table]:
        """Run a task; its record and what it wrote."""
        record = run_preprocess(self.task(transform, node=node, **changes), self.contexts[node])
        return record, pq.read_table(self.output(node))

    def output(self, node: str = "a") -> Path:
        return self.root / node / "data" / "small" / "run" / "data-local" / "part-0.parquet"

    def staging(self, node: str = "b") -> StagingTask:
        return StagingTask(
            id="staging-part-0", arm="central-staged", stage="staging", node=node, attempt=1, wiring=self.wiring,
            dataset="photos", shard="part-0.parquet", sources=("a",), destination="staged/run/photos", reason="told to",
        )  # fmt: skip


def photos(rows: int = 25, **columns: Any) -> pa.Table:
    """Images, labels and paths; `columns` replaces or adds."""
    return pa.table(
        {
            "image": pa.array([picture(row) for row in range(rows)], pa.binary()),
            "label": pa.array([row % 3 for row in range(rows)], pa.int64()),
            "path": [f"p/{row}.jpg" for row in range(rows)],
            **columns,
        }
    ).replace_schema_metadata({"datalocal": '{"classes": ["x", "y", "z"]}'})


@contextmanager
def bench(folder: Path, *, nodes: Sequence[str] = ("a", "b"), code: Mapping[str, str] | None = None) -> Iterator[Bench]:
    """Nodes with folders and stores in this process, and a sink that has the job's code."""
    job = folder / "job"
    job.mkdir()
    for name, text in {"job_code.py": CODE, **(code or {})}.items():
        (job / name).write_text(text)
    hash_, packed = pack(job, 1_000_000)
    kept, contexts, servers = Kept(), {}, []
    for node in nodes:
        contexts[node] = NodeContext(name=node, root=folder / node, token=TOKEN, cores=2, executor="test")
        servers.append(StoreServer(node=node, root=folder / node, token=TOKEN))
    sink = Sink(token=TOKEN, code={hash_: packed}, handler=kept)
    try:
        yield Bench(
            root=folder,
            contexts=contexts,
            kept=kept,
            wiring=Wiring(
                run="run",
                cluster=Cluster(name="test", replication=1, nodes=tuple(Node(name=node, rack="r") for node in nodes)),
                stores={node: server.location for node, server in zip(nodes, servers, strict=True)},
                sink=sink.location,
                code=hash_,
            ),
        )
    finally:
        sink.close()
        for server in servers:
            server.close()
