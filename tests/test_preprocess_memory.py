"""Preprocessing streams: memory does not grow with the shard."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest

from datalocal.launch.process import node_environment

_CHILD = """
import pathlib, re, sys
import pyarrow as pa, pyarrow.parquet as pq
from datalocal.tasks.preprocess import run_preprocess
from tests.preprocess_bench import bench, picture

rows, folder = int(sys.argv[1]), pathlib.Path(sys.argv[2])

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
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the kernel's own peak begins anew
    record = run_preprocess(here.task("half", batch=32), here.contexts["a"])
    assert record.images_out == rows, record
    print(1024 * int(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path("/proc/self/status").read_text())[1]))
"""


@pytest.mark.slow
def test_memory_at_20000_images_is_within_a_tenth_of_that_at_2000(tmp_path: Path) -> None:
    def peak(rows: int, time: int = 0) -> int:
        folder = tmp_path / f"{rows}-{time}"
        folder.mkdir()
        environment = node_environment()
        command = [sys.executable, "-c", _CHILD, str(rows), str(folder)]
        return int(
            subprocess.run(command, check=True, capture_output=True, text=True, env=environment, timeout=240).stdout
        )

    small, large = median(peak(2_000, time) for time in range(3)), peak(20_000)
    assert large <= 1.1 * small, f"{small / 2**20:.0f} MiB at 2,000 images, {large / 2**20:.0f} MiB at 20,000"
