"""Real stores on real sockets for tests: a folder per node, and Parquet shards small enough to make in milliseconds."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from datalocal.spec.cluster import Cluster, Node
from datalocal.storage.client import Store
from datalocal.storage.counting import ByteCounter
from datalocal.storage.server import StoreServer

TOKEN = "not-a-secret-outside-tests"

_SERVE = """
import sys, pathlib
from datalocal.storage.server import StoreServer
server = StoreServer(node=sys.argv[1], root=pathlib.Path(sys.argv[2]), token=sys.argv[3])
print(server.location, flush=True)
sys.stdin.read()
server.close()
"""


class Stores:
    """Some nodes' stores in this process. `counter` counts for every store that `store` makes."""

    def __init__(self, root: Path, nodes: Sequence[str], **limits: int | None) -> None:
        self.root, self.nodes = root, tuple(nodes)
        self.counter = ByteCounter()
        self._made: list[Store] = []
        self.servers = {node: StoreServer(node=node, root=root / node, token=TOKEN, **limits) for node in nodes}  # type: ignore[arg-type]  # the limits' types differ
        self.locations: dict[str, str] = {node: server.location for node, server in self.servers.items()}

    def store(self, node: str = "head", *, token: str = TOKEN, timeout_seconds: float = 10.0) -> Store:
        """A store that reads for `node`."""
        store = Store(
            node=node,
            root=self.root / node if node in self.nodes else None,
            stores=self.locations,
            token=token,
            counter=self.counter,
            timeout_seconds=timeout_seconds,
        )
        self._made.append(store)
        return store

    def put(self, node: str, path: str, content: bytes) -> Path:
        """Lay a file into a node's folder, behind the stores' back."""
        file = self.root / node / "data" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        return file

    def counted(self, class_: str) -> Mapping[tuple[str, str], int]:
        """Bytes of one class by (source, destination)."""
        return {(row.source, row.destination): row.bytes for row in self.counter.rows() if row.class_ == class_}

    def close(self) -> None:
        """Close everything."""
        for store in self._made:
            store.close()
        for server in self.servers.values():
            server.close()


@contextmanager
def stores(root: Path, nodes: Sequence[str] = ("a", "b", "c"), **limits: int | None) -> Iterator[Stores]:
    """Stores for `nodes`, closed at the end."""
    made = Stores(root, nodes, **limits)
    try:
        yield made
    finally:
        made.close()


@contextmanager
def served_elsewhere(node: str, root: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A node's store in a process of its own, and its location; killed at the end."""
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVE, node, str(root), TOKEN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        location = process.stdout.readline().strip()
        assert location.startswith("grpc://"), "the store process did not start"
        yield process, location
    finally:
        process.kill()
        process.communicate()


def shard_bytes(
    rows: int = 10,
    *,
    group: int = 4,
    labels: Sequence[Any] | None = None,
    metadata: dict[str, str] | None = None,
    **columns: Any,
) -> bytes:
    """A Parquet shard with the columns `image` and `label`; `columns` replaces or adds columns, None takes one away."""
    content = {
        "image": pa.array([bytes([row % 256]) * (50 + row) for row in range(rows)], pa.binary()),
        "label": pa.array(list(labels) if labels is not None else [row % 3 for row in range(rows)]),
        **columns,
    }
    table = pa.table({name: column for name, column in content.items() if column is not None})
    out = pa.BufferOutputStream()
    pq.write_table(table.replace_schema_metadata(metadata), out, row_group_size=group, compression="none")
    return bytes(out.getvalue())


def cluster_of(*names: str) -> Cluster:
    """A cluster of storage nodes with these names."""
    return Cluster(name="test", replication=1, nodes=tuple(Node(name=name, rack="r1") for name in names))
