"""What ingest tests share: small pictures, sources of every layout, a small cluster, and reading back what was written."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from datalocal.ingest import IngestReport, ingest
from datalocal.spec.cluster import Cluster, Node
from tests.stores import Stores, stores

NODES = ("a", "b", "c", "d")


def picture(seed: int, side: int = 24, suffix: str = ".jpg") -> bytes:
    """A small real image file."""
    pixels = np.random.default_rng(seed).integers(0, 255, (side, side, 3), np.uint8)
    done, data = cv2.imencode(suffix, pixels)
    assert done
    return bytes(data)


def cluster_of(block_bytes: int = 1 << 16, replication: int = 2) -> Cluster:
    """Four storage nodes in two racks and a central node."""
    nodes = [Node(name=name, rack="r1" if name in "ab" else "r2") for name in NODES]
    nodes.append(Node(name="central", rack="r3", role="compute"))
    return Cluster(name="test", replication=replication, block_bytes=block_bytes, nodes=tuple(nodes))


class World:
    """Stores and a cluster; `ingest` with their arguments."""

    def __init__(self, made: Stores, cluster: Cluster) -> None:
        self.stores, self.cluster = made, cluster

    def ingest(self, source: Path, dataset: str = "photos", **options: Any) -> IngestReport:
        """Ingest as the run process would."""
        return ingest(source, dataset, self.stores.store(), self.cluster, **({"alive": [*NODES, "central"]} | options))

    def files(self, dataset: str = "photos") -> dict[str, dict[str, Path]]:
        """What lies in the data set: key -> node -> file."""
        found: dict[str, dict[str, Path]] = {}
        for node in self.stores.nodes:
            base = self.stores.root / node / "data" / dataset
            for file in sorted(base.rglob("*")):
                if file.is_file():
                    found.setdefault(file.relative_to(base).as_posix(), {})[node] = file
        return dict(sorted(found.items()))

    def table(self, dataset: str = "photos") -> pa.Table:
        """All rows, shard by shard, from the first replica of each."""
        return pa.concat_tables(
            pq.ParquetFile(next(iter(nodes.values()))).read() for nodes in self.files(dataset).values()
        )

    def rows(self, dataset: str = "photos") -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = self.table(dataset).to_pylist()
        return rows


@contextmanager
def world(root: Path, **cluster: int) -> Iterator[World]:
    """A small world, closed at the end."""
    with stores(root / "nodes", (*NODES, "central")) as made:
        yield World(made, cluster_of(**cluster))


def classes_of(table: pa.Table) -> list[str]:
    """The class names that the shards declare."""
    names: list[str] = json.loads(table.schema.metadata[b"datalocal"])["classes"]
    return names


def write_files(root: Path, files: Mapping[str, bytes]) -> Path:
    """Files below `root`."""
    for name, content in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return root


def write_tar(path: Path, members: Mapping[str, bytes], mode: Any = "w") -> Path:
    """A tar with these members, in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


def decoded(data: bytes) -> npt.NDArray[Any]:
    """The pixels, by another decoder than ours."""
    image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert image is not None
    return image
