"""Preprocessing streams: memory does not grow with the shard."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from datalocal.launch.process import node_environment

_CHILD = """
import pathlib, sys, threading
import pyarrow as pa, pyarrow.parquet as pq
from datalocal.tasks.preprocess import run_preprocess
from tests.preprocess_bench import bench, picture

rows, folder = int(sys.argv[1]), pathlib.Path(sys.argv[2])

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096

with bench(folder, nodes=("a",)) as here:
    images = [picture(number, side=48) for number in range(40)]
    path = folder / "a" / "data" / "photos" / "part-0.parquet"
    path.parent.mkdir(parents=True)
    schema = pa.schema([("image", pa.binary()), ("label", pa.int64())])
    with pq.ParquetWriter(path, schema, compression="none", use_dictionary=False) as writer:
        for first in range(0, rows, 200):
            group = [images[(first + i) % 40] for i in range(200)]
            writer.write_table(pa.table({"image": pa.array(group, pa.binary()), "label": [0] * 200}, schema=schema))
    run_preprocess(here.task("half", batch=32), here.contexts["a"])  # warm: threads, code, arenas
    peak, done = resident(), threading.Event()
    def watch():
        global peak
        while not done.wait(0.005):
            peak = max(peak, resident())
    watcher = threading.Thread(target=watch)
    watcher.start()
    record = run_preprocess(here.task("half", batch=32), here.contexts["a"])
    done.set()
    watcher.join()
    assert record.images_out == rows, record
    print(peak)
"""


@pytest.mark.slow
def test_memory_at_20000_images_is_within_a_tenth_of_that_at_2000(tmp_path: Path) -> None:
    def peak(rows: int) -> int:
        folder = tmp_path / str(rows)
        folder.mkdir()
        environment = node_environment()
        command = [sys.executable, "-c", _CHILD, str(rows), str(folder)]
        return int(
            subprocess.run(command, check=True, capture_output=True, text=True, env=environment, timeout=240).stdout
        )

    small, large = peak(2_000), peak(20_000)
    assert large <= 1.1 * small, f"{small >> 20} MiB at 2,000 images, {large >> 20} MiB at 20,000"
