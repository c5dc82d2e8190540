"""An ingest streams: what it holds does not grow with what it reads."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.ingesting import NODES, picture, world

# VmHWM, not ru_maxrss: the latter begins with the memory of the process that started this one.
_MEASURE = """
import re, sys
from pathlib import Path
from datalocal.ingest import ingest
from datalocal.spec.cluster import Cluster
from datalocal.storage.client import Store
from datalocal.storage.counting import ByteCounter

source, cluster, token, dataset, *pairs = sys.argv[1:]
store = Store(node="head", root=None, stores=dict(pair.split("=") for pair in pairs), token=token, counter=ByteCounter())
report = ingest(Path(source), dataset, store, Cluster.model_validate_json(cluster), alive=list("abcd"))
print(report.images, *re.findall(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text()))
"""


def source_of(path: Path, rows: int) -> Path:
    """Parquet with one row group of 24 kB a row, as large as some people write them: the same images again and again."""
    images = [picture(i, 128) for i in range(200)] * (rows // 200)
    table = pa.table({"image": pa.array(images, pa.binary()), "label": range(rows)})
    pq.write_table(table, path, compression="none", use_dictionary=False, row_group_size=rows)
    return path


@pytest.mark.slow
def test_memory_does_not_grow_with_the_data_set(tmp_path: Path) -> None:
    """Five times the images in one row group, 116 MB more of them: the process's peak grows by less than 30 MB."""
    from tests.stores import TOKEN

    peaks = []
    with world(tmp_path, block_bytes=8 << 20) as small:
        pairs = [f"{node}={small.stores.locations[node]}" for node in NODES]
        for rows in (1200, 6000):
            source = source_of(tmp_path / f"{rows}.parquet", rows)
            told = subprocess.run(
                [
                    *(sys.executable, "-c", _MEASURE, str(source), small.cluster.model_dump_json(), TOKEN),
                    *(f"photos{rows}", *pairs),
                ],
                cwd=Path(__file__).parents[1],
                check=True,
                capture_output=True,
                text=True,
            ).stdout.split()
            assert int(told[0]) == rows
            peaks.append(1024 * int(told[1]))
    assert peaks[1] < peaks[0] + 30e6, peaks
