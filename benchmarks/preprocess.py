"""Images per second of a preprocess task against a bare loop over the same three calls, on two threads.

    PYTHONPATH=. python -m benchmarks.preprocess [--pairs 20] [--images 1500] [--threads 2]

The task is a whole one: it reads a shard of photographs (500x375 JPEGs) from its store, resizes them to 341x256, and writes the new
shard to the disk, counted and logged. The loop calls simplejpeg.decode_jpeg, cv2.resize (INTER_LINEAR) and simplejpeg.encode_jpeg
(quality 90, 4:2:0) on images that lie in memory, and keeps the results there. The *script by hand* is that loop between
pyarrow's read_table and write_table: what reading and writing cost. All run in this process, in turns, with the
environment that a node's process gets (its allocator keeps memory). Besides the wall clock there is the processor time of
the process (the store's and the sink's threads included): where others use the same cores, only that one is worth reading.
"""

from __future__ import annotations

import argparse
import gc
import os
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg

from benchmarks.pairs import as_a_node, command, machine, ratio, versions
from datalocal.demo.photos import make_crops
from datalocal.spec.cluster import Cluster, Node
from datalocal.spec.job import Columns, Preprocess
from datalocal.storage.server import StoreServer
from datalocal.storage.sink import Sink
from datalocal.tasks.code import pack
from datalocal.tasks.model import NodeContext, PreprocessTask, Wiring
from datalocal.tasks.preprocess import run_preprocess

WIDTH, HEIGHT, QUALITY, GROUP, TOKEN = 341, 256, 90, 250, "benchmark"

JOB = f"""
import cv2

def shrink(images, device):
    return [cv2.resize(image, ({WIDTH}, {HEIGHT}), interpolation=cv2.INTER_LINEAR) for image in images]
"""


def one(data: bytes | memoryview) -> bytes:
    """The three calls that both sides make."""
    image = cv2.resize(simplejpeg.decode_jpeg(data, "RGB"), (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR)
    return bytes(simplejpeg.encode_jpeg(image, quality=QUALITY, colorspace="RGB", colorsubsampling="420"))


def bare(images: Sequence[bytes | memoryview], threads: int) -> list[bytes]:
    """The loop, divided among threads beforehand."""
    results: list[bytes] = [b""] * len(images)

    def work(first: int) -> None:
        for i in range(first, len(images), threads):
            results[i] = one(images[i])

    workers = [threading.Thread(target=work, args=(first,)) for first in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return results


def by_hand(source: Path, target: Path, threads: int) -> None:
    """The script that a person would write: read the shard, the bare loop, write the shard; one after the other."""
    table = pq.read_table(source)
    images = [memoryview(value.as_buffer()).cast("B") for value in table.column("image").combine_chunks()]
    column = pa.array(bare(images, threads), pa.binary())
    pq.write_table(table.set_column(0, "image", column), target, compression="none", use_dictionary=False)
    with target.open("rb") as written:
        os.fsync(written.fileno())


class Quiet:
    """A sink's handler: logs go nowhere, nothing else comes."""

    def log(self, arm: str, task: str, text: str) -> None:
        pass

    def record(self, kind: str, content: dict[str, Any]) -> None:
        raise AssertionError(kind)

    def put_checkpoint(self, arm: str, name: str, content: pa.Buffer) -> None:
        raise AssertionError(name)

    def get_checkpoint(self, arm: str, name: str) -> pa.Buffer:
        raise AssertionError(name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Images per second of each pass."""

    wall: list[float]
    processor: list[float]

    def measure(self, act: Callable[[], None], images: int) -> None:
        """Time a pass."""
        wall, processor = time.perf_counter(), time.process_time()
        act()
        self.processor.append(images / (time.process_time() - processor))
        self.wall.append(images / (time.perf_counter() - wall))


def measure(folder: Path, images: list[bytes], pairs: int, threads: int) -> tuple[Rates, Rates, Rates]:
    """(ours, bare, by hand), round by round; the results of all are the same bytes."""
    root = folder / "a"
    path = root / "data" / "photos" / "part-0.parquet"
    path.parent.mkdir(parents=True)
    table = pa.table({"image": pa.array(images, pa.binary()), "label": [0] * len(images)})
    pq.write_table(table, path, compression="none", use_dictionary=False, row_group_size=GROUP)
    job = folder / "job"
    job.mkdir()
    (job / "job_code.py").write_text(JOB)
    hash_, packed = pack(job, 1_000_000)
    server = StoreServer(node="a", root=root, token=TOKEN)
    sink = Sink(token=TOKEN, code={hash_: packed}, handler=Quiet())
    context = NodeContext(name="a", root=root, token=TOKEN, cores=threads, executor="benchmark")
    task = PreprocessTask(
        id="preprocess",
        arm="data-local",
        stage="preprocess",
        node="a",
        attempt=1,
        wiring=Wiring(
            run="benchmark",
            cluster=Cluster(name="benchmark", replication=1, nodes=(Node(name="a", rack="r"),)),
            stores={"a": server.location},
            sink=sink.location,
            code=hash_,
        ),
        dataset="photos",
        shard="part-0.parquet",
        sources=("a",),
        outputs=("a",),
        destination="small",
        columns=Columns(),
        spec=Preprocess(transform="job_code:shrink", output="small", jpeg_quality=QUALITY),
        seed=0,
    )

    output = root / "data" / "small" / "part-0.parquet"

    def ours() -> None:
        record = run_preprocess(task, context)
        assert (record.images_in, record.images_out) == (len(images), len(images)), record
        assert not record.damaged, record.damaged

    def theirs() -> None:
        kept[:] = bare(images, threads)

    kept: list[bytes] = []
    script = folder / "by-hand.parquet"
    try:
        ours()  # warm
        theirs()
        by_hand(path, script, threads)
        assert pq.read_table(script).column("image").to_pylist() == kept, "the script does the same work"
        written = pq.read_table(output).column("image").to_pylist()
        assert written == kept, "both sides do the same work"
        us, them, hand = (Rates(wall=[], processor=[]) for _ in range(3))
        sides: list[tuple[Rates, Callable[[], None]]] = [
            (us, ours),
            (them, theirs),
            (hand, lambda: by_hand(path, script, threads)),
        ]
        for pair in range(pairs):
            for rates, act in (*sides[pair % 3 :], *sides[: pair % 3]):
                for file in (output, script):
                    file.unlink(missing_ok=True)  # a new shard is written, and no old one taken from the disk
                rates.measure(act, len(images))
        return us, them, hand
    finally:
        sink.close()
        server.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--images", type=int, default=1500)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    as_a_node()
    gc.freeze()  # as a node's task process does
    images = [crop.image_bytes for crop in make_crops(options.images, 0)]
    with tempfile.TemporaryDirectory() as folder:
        us, them, hand = measure(Path(folder), images, options.pairs, options.threads)
    print(command())
    print(machine())
    print(versions("datalocal", "simplejpeg", "opencv-python-headless", "pyarrow", "numpy"))
    size = sum(map(len, images)) / len(images)
    print(f"{len(images)} photographs, {size / 1000:.1f} kB on average, {options.threads} threads")
    for clock, mine, bare_ones, hands in (
        ("wall", us.wall, them.wall, hand.wall),
        ("processor", us.processor, them.processor, hand.processor),
    ):
        print(
            f"images per second of {clock} time (medians): datalocal {median(mine):.0f}, bare loop {median(bare_ones):.0f}, "
            f"script by hand {median(hands):.0f}"
        )
        print(f"  datalocal / bare loop: {ratio(mine, bare_ones)}: median, 95 % interval by bootstrap; wanted 0.95")
        print(f"  datalocal / script by hand: {ratio(mine, hands)}")
        print(f"  script by hand / bare loop: {ratio(hands, bare_ones)}")


if __name__ == "__main__":
    main()
