"""Images per second of training under datalocal's launcher against the same loop under plain torchrun, on the same files.

    python -m benchmarks.train_throughput [--pairs 20] [--images 2000] [--epochs 2]

One node, one rank, this machine's cores. Ours is a whole launch: agent, rank, store server, sink, sample accounting,
checkpoints. The other side is `torchrun` with a script that has nothing but the loop: the same reader, model, optimizer and
batches. Both measure from the first batch they ask for to the end of the last step, and both must have used every image of
every epoch once. The two take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import numpy as np

from benchmarks.pairs import command, machine, ratio, versions
from benchmarks.reader import crops
from datalocal.launch.process import node_environment
from datalocal.placement.gang import EpochPlan, RankShare, RankSlot, Segment
from datalocal.spec.cluster import Cluster, Node
from datalocal.spec.job import Columns, Train
from datalocal.storage.server import StoreServer
from datalocal.storage.sink import Sink
from datalocal.tasks.code import pack
from datalocal.tasks.model import EpochWork, NodeContext, RowMask, TrainTask, Wiring
from datalocal.tasks.train.agent import run_train
from datalocal.tasks.train.rendezvous import RendezvousStore
from tests.gangs import Kept

BATCH, CROP, GROUP, TOKEN = 64, 128, 250, "benchmark-token-of-32-characters"

MODEL = textwrap.dedent(
    """
    import torch


    def cnn(classes):
        torch.manual_seed(0)
        return torch.nn.Sequential(
            torch.nn.Conv2d(3, 32, 5, stride=4), torch.nn.BatchNorm2d(32), torch.nn.ReLU(),
            torch.nn.Conv2d(32, 64, 3, stride=2), torch.nn.BatchNorm2d(64), torch.nn.ReLU(),
            torch.nn.Conv2d(64, 128, 3, stride=2), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(),
            torch.nn.Linear(2048, classes),
        )
    """
)

PLAIN = textwrap.dedent(
    """
    import json, sys, time
    import torch
    from bench_model import cnn
    from datalocal.training import ShardDataset, to_float

    folder, epochs, threads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(threads)
    dataset = ShardDataset(folder, batch=64, image_size=128, threads=threads)
    model = cnn(10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    seen = 0
    begin = time.monotonic()
    for epoch in range(epochs):
        dataset.set_epoch(epoch)
        for images, labels in dataset:
            optimizer.zero_grad(set_to_none=True)
            loss = torch.nn.functional.cross_entropy(model(to_float(images)), labels)
            loss.backward()
            optimizer.step()
            seen += len(labels)
            end = time.monotonic()
    print(json.dumps({"images": seen, "seconds": end - begin}))
    """
)


def write_shards(folder: Path, count: int) -> dict[str, list[int]]:
    """Shards of four row groups; their row groups' rows by key."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True)
    images, shards = crops(count), {}
    for start in range(0, count, 4 * GROUP):
        chunk = images[start : start + 4 * GROUP]
        table = pa.table({"image": pa.array(chunk, pa.binary()), "label": np.arange(start, start + len(chunk)) % 10})
        key = f"part-{start:06d}.parquet"
        pq.write_table(table, folder / key, compression="none", use_dictionary=False, row_group_size=GROUP)
        metadata = pq.read_metadata(folder / key)
        shards[key] = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
    return shards


class Node1:
    """One node with a store, a sink, and the job's code: what a launch needs."""

    def __init__(self, folder: Path, shards: dict[str, list[int]], epochs: int, cores: int) -> None:
        self._context = NodeContext(name="node1", root=folder / "node1", token=TOKEN, cores=cores, executor="benchmark")
        self._server = StoreServer(node="node1", root=self._context.root, token=TOKEN)
        job = folder / "job"
        job.mkdir()
        (job / "bench_model.py").write_text(MODEL)
        self._hash, packed = pack(job, 1_000_000)
        self._kept = Kept()
        self._sink = Sink(token=TOKEN, code={self._hash: packed}, handler=self._kept)
        self._rendezvous = RendezvousStore()
        segments = tuple(
            Segment(shard=key, group=group, start=0, stop=rows, sources=("node1",))
            for key, groups in shards.items()
            for group, rows in enumerate(groups)
        )
        share = RankShare(slot=RankSlot(rank=0, node="node1", local_rank=0), segments=segments)
        plan = EpochPlan(steps=-(-share.samples // BATCH), shares=(share,))
        masks = {key: RowMask(rows=sum(groups)) for key, groups in shards.items()}
        self._works = tuple(EpochWork(epoch=epoch, plan=plan, masks=masks) for epoch in range(epochs))

    def run(self, number: int) -> float:
        """One launch; images per second."""
        task = TrainTask(
            id=f"train-{number}",
            arm="data-local",
            stage="train",
            node="node1",
            attempt=1,
            wiring=Wiring(
                run=f"benchmark-{number}",
                cluster=Cluster(name="benchmark", replication=1, nodes=(Node(name="node1", rack="rack1"),)),
                stores={"node1": self._server.location},
                sink=self._sink.location,
                code=self._hash,
            ),
            dataset="crops",
            launch=number,
            spec=Train.model_validate(
                {
                    "model": "bench_model:cnn",
                    "image_size": CROP,
                    "optimizer": {"arguments": {"lr": 0.01, "momentum": 0.9}},
                }
            ),
            columns=Columns(),
            labels=tuple(map(str, range(10))),
            seed=0,
            nodes=("node1",),
            ranks_on_node=1,
            rendezvous=self._rendezvous.endpoint,
            world=1,
            device="cpu",
            gpus=(),
            epochs=self._works,
            validation=None,
            checkpoint=None,
        )
        self._kept.records.clear()
        run_train(task, self._context)
        (record,) = self._kept.of("rank")
        for epoch in range(len(self._works)):
            assert all((uses == 1).all() for uses in self._kept.uses(epoch).values())
        assert record["images"] == sum(work.plan.samples for work in self._works)
        return float(record["images"] / record["seconds"])

    def close(self) -> None:
        self._rendezvous.close()
        self._sink.close()
        self._server.close()


def plain(folder: Path, data: Path, images: int, epochs: int, cores: int, users: dict[str, str]) -> float:
    """The loop under torchrun in the environment of whoever started this; images per second."""
    here = Path(__file__).resolve().parent.parent
    paths = [str(here), str(folder / "job"), *filter(None, [users.get("PYTHONPATH")])]
    environment = users | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": str(cores)}
    torchrun = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node=1",
        str(folder / "plain.py"),
    ]
    done = subprocess.run(
        [*torchrun, str(data), str(epochs), str(cores)], env=environment, check=True, stdout=subprocess.PIPE, text=True
    )
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["images"] == images * epochs
    return float(answer["images"] / answer["seconds"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--epochs", type=int, default=2)
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    folder = Path(tempfile.mkdtemp(prefix="datalocal-train-"))
    data = folder / "node1" / "data" / "crops"
    begin = time.monotonic()
    users = dict(os.environ)
    os.environ |= node_environment()  # agent and ranks are started by a node's process, with its environment
    try:
        node = Node1(folder, write_shards(data, options.images), options.epochs, cores)
        (folder / "plain.py").write_text(PLAIN)
        ours: list[float] = []
        theirs: list[float] = []
        try:
            for number in range(options.pairs):
                for side in (0, 1) if number % 2 else (1, 0):
                    if side:
                        ours.append(node.run(number))
                    else:
                        theirs.append(plain(folder, data, options.images, options.epochs, cores, users))
                print(f"pair {number + 1}: datalocal {ours[-1]:.0f}, torchrun {theirs[-1]:.0f} images/s", flush=True)
        finally:
            node.close()
    finally:
        shutil.rmtree(folder)
    print(f"$ {command()}   ({time.monotonic() - begin:.0f} s)\n{machine()}")
    print(versions("torch", "pyarrow", "simplejpeg"))
    print(f"datalocal {np.median(ours):.0f} images/s, torchrun {np.median(theirs):.0f} images/s (medians)")
    print(f"datalocal / torchrun: {ratio(ours, theirs)}; wanted: median 0.97, lower end 0.95")


if __name__ == "__main__":
    main()
