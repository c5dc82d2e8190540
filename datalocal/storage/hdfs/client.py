"""A cluster whose storage nodes are DataNodes: their data sets lie in HDFS, those of compute nodes in the nodes' own folders."""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa

from datalocal.errors import StorageError
from datalocal.ledger.records import TrafficClass
from datalocal.spec.cluster import Cluster
from datalocal.spec.job import Columns
from datalocal.spec.joining import Tls
from datalocal.storage.client import Names, Store, content_bytes, content_chunks
from datalocal.storage.counting import ByteCounter
from datalocal.storage.files import check_path
from datalocal.storage.hdfs import inspect
from datalocal.storage.hdfs.attribution import questions
from datalocal.storage.hdfs.namenode import MissingError, NameNode
from datalocal.storage.hdfs.reading import HdfsFile, Reader
from datalocal.storage.hdfs.survey import Found, Survey, survey
from datalocal.storage.hdfs.webhdfs import FileStatus
from datalocal.storage.hdfs.where import find_hdfs, rpc_ports
from datalocal.storage.hdfs.writing import hops, patience_seconds, write_file
from datalocal.storage.listing import Listing, ShardListing

HDFS = "hdfs"
"""The place that stands for all DataNodes together: what is written there lies where HDFS puts it."""

_inspector = inspect.Inspector()


class HdfsStore(Store):
    """As `Store`, with HDFS in the place of the storage nodes' folders. Paths are `data set/key` below `storage.root`.

    What concerns compute nodes only (staged copies, results that are shipped) is in their folders, as in an embedded cluster.
    """

    def __init__(
        self,
        cluster: Cluster,
        *,
        node: str,
        root: Path | None,
        stores: Mapping[str, str],
        token: str,
        counter: ByteCounter,
        timeout_seconds: float = 10.0,
        tls: Tls | None = None,
    ) -> None:
        super().__init__(
            node=node,
            root=root,
            stores=stores,
            token=token,
            counter=counter,
            timeout_seconds=timeout_seconds,
            tls=tls,
        )
        assert cluster.hdfs is not None
        self._cluster, self._storage = cluster, cluster.hdfs
        self._datanodes = {HDFS, *(each.name for each in cluster.storage_nodes)}
        self._namenode = NameNode(self._storage, self._count_control)
        self._rpc_ports = rpc_ports(find_hdfs(self._storage))
        self._reader = Reader(
            node=node,
            storage=self._storage,
            namenode=self._namenode,
            node_of_host=cluster.node_of_host,
            counter=counter,
            detour=self._detour,
            count_questions=self._count_questions,
        )
        self._survey_lock = threading.Lock()
        self._surveys: dict[tuple[str, Columns], Survey | StorageError] = {}

    def open(self, path: str, sources: Sequence[str], class_: TrafficClass = "input") -> pa.NativeFile:
        """The file, for random access. HDFS's own order of replicas decides: the DataNode beside the reader comes first."""
        if not self._in_hdfs(sources):
            return super().open(path, sources, class_)
        return pa.PythonFile(HdfsFile(self._reader, self._full(path), class_), mode="r")

    def write(
        self, path: str, content: Path | pa.Buffer, nodes: Sequence[str], class_: TrafficClass = "output"
    ) -> None:
        """Write a file with as many replicas as `nodes`; the first beside the writer, the others where HDFS chooses.

        The run process has no DataNode beside it: it hands the file to the first of `nodes`, which writes it. So ingest
        spreads first replicas over all nodes.
        """
        if not self._in_hdfs(nodes):
            super().write(path, content, nodes, class_)
            return
        full, size_bytes = self._full(path), content_bytes(content)
        replication = self._cluster.replication if HDFS in nodes else len(nodes)
        if self.folder is None and nodes[0] in self._peers:
            what = {"path": path, "bytes": size_bytes}
            peer = self.peer(nodes[0])
            peer.ask("room", what)  # one that does not answer costs its timeout, not the patience that a write needs
            patience = patience_seconds(self._storage)
            peer.write(what | {"hdfs": replication}, content_chunks(content), class_, patience_seconds=patience)
            return
        blocks = write_file(
            self._namenode,
            self._storage,
            full,
            lambda: content_chunks(content),
            size_bytes=size_bytes,
            block_bytes=self._cluster.block_bytes,
            replication=replication,
        )
        self._count_questions()
        for source, destination, count, origin in hops(blocks, self.node, self._cluster.node_of_host):
            self.counter.add(class_, source, destination, count, origin, traced_bytes=count, operations=1)

    def write_copies(
        self, path: str, content: Path | pa.Buffer, nodes: Sequence[str], copies: int, class_: TrafficClass
    ) -> None:
        """Write a file with so many replicas: on which of the DataNodes is for HDFS to choose."""
        if self._in_hdfs(nodes):
            self.write(path, content, nodes[:copies], class_)
        else:
            super().write_copies(path, content, nodes, copies, class_)

    def list(self, node: str, dataset: str, columns: Columns) -> Listing:
        """The shards of which `node` holds the most bytes; those without a preferred node are on every DataNode's list."""
        if not self._in_hdfs([node]):
            return super().list(node, dataset, columns)
        found = self._survey(dataset, columns)
        return Listing(node=node, dataset=dataset, shards=found.shards if node == HDFS else tuple(found.on(node)))

    def keeps(self, nodes: Sequence[str]) -> bool:
        """Only where what is written is not in HDFS."""
        return super().keeps(nodes) and not self._in_hdfs(nodes)

    def remarks(self, dataset: str, columns: Columns) -> Names:
        """What is to be known about where the data set lies."""
        return list(self._survey(dataset, columns).remarks)

    def places(self, nodes: Sequence[str]) -> Names:
        """HDFS is one place, whichever of its nodes is meant."""
        return [HDFS] if self._in_hdfs(nodes) else list(nodes)

    def datasets(self, node: str) -> Names:
        """Every folder below the root that holds shards directly, sorted."""
        if not self._in_hdfs([node]):
            return super().datasets(node)
        with suppress(MissingError):
            return sorted(
                {file.path.rpartition("/")[0] for file in self._namenode.files(self._storage.root) if "/" in file.path}
            )
        return []

    def delete(self, node: str, dataset: str) -> None:
        """Remove `dataset`; what is not there is no error."""
        if not self._in_hdfs([node]):
            super().delete(node, dataset)
            return
        with suppress(MissingError):
            self._namenode.delete(self._full(dataset))

    # -- for the server beside it ----------------------------------------------------------------------------------------

    def inspect(self, body: dict[str, Any]) -> dict[str, Any]:
        """What is in the shards that another store asks about, read from here; with what reading them cost."""
        dataset = str(body["dataset"])
        check_path(dataset, self.node)
        answer = inspect.answer(body, lambda file, columns: self._look(dataset, file, columns))
        return answer | {"rows": [row.to_json() for row in self.counter.rows()]}

    def read_full(self, path: str, offset: int, length: int) -> pa.Buffer:
        """Bytes of a file by its path in HDFS, for a reader whose own way to them is blocked."""
        if not path.startswith(f"{self._storage.root}/"):
            raise StorageError(f"{self.node}: refused: {path} is not below {self._storage.root}")
        check_path(path.removeprefix(f"{self._storage.root}/"), self.node)
        file = HdfsFile(self._reader, path, "input")
        try:
            file.seek(offset)
            return file.read_buffer(length)
        finally:
            file.close()

    # -- within ----------------------------------------------------------------------------------------------------------

    def _count_control(self, sent: int, received: int) -> None:
        self.counter.add("control", self.node, "namenode", sent, "measured.writer")
        self.counter.add("control", "namenode", self.node, received)

    def _count_questions(self) -> None:
        sent, received = questions.take(self._rpc_ports)
        self.counter.add("control", self.node, "namenode", sent, "measured.socket")
        self.counter.add("control", "namenode", self.node, received, "measured.socket")

    def _in_hdfs(self, nodes: Iterable[str]) -> bool:
        """Whether what is on these nodes lies in HDFS: all but what is on compute nodes only."""
        names = list(nodes)
        return not names or any(name in self._datanodes for name in names)

    def _full(self, path: str) -> str:
        check_path(path, self.node)
        return f"{self._storage.root}/{path}"

    def _survey(self, dataset: str, columns: Columns) -> Survey:
        """One survey per store and data set: all nodes' listings are of the same moment.

        One that failed is not tried again either: with a NameNode that is away, each node's listing would wait for it in turn.
        """
        with self._survey_lock:
            key = (dataset, columns)
            if key not in self._surveys:
                try:
                    self._surveys[key] = survey(
                        self._namenode,
                        self._cluster,
                        self._full(dataset),
                        lambda found: self._look_all(dataset, found, columns),
                    )
                except StorageError as error:
                    self._surveys[key] = error
            found = self._surveys[key]
        if isinstance(found, StorageError):
            raise StorageError(found.message, found.hint)
        return found

    def _look_all(self, dataset: str, found: Sequence[Found], columns: Columns) -> dict[str, ShardListing]:
        """Footers and labels, each read by a node that holds the shard; by this process where that node does not answer."""
        by_node: dict[str, Any] = defaultdict(list)
        for number, each in enumerate(found):
            holders = [name for name in each.holders if name in self._peers and name not in self._away]
            by_node[holders[number % len(holders)] if holders else ""].append(each.file)
        looked: dict[str, ShardListing] = {}
        with ThreadPoolExecutor(max(1, len(by_node))) as pool:
            for part in pool.map(lambda pair: self._look_from(dataset, pair[0], pair[1], columns), by_node.items()):
                looked |= part
        return looked

    def _look_from(self, dataset: str, node: str, files: Sequence[FileStatus], columns: Columns) -> dict[str, Any]:
        looked: dict[str, Any] = {}
        left = list(files)
        while left and node:
            try:
                told = self.peer(node).ask("inspect", inspect.question(dataset, left, columns))
            except StorageError:
                break
            shards, rows = inspect.from_answer(told)
            self.counter.add_rows(rows)
            looked |= {file.path: shard for file, shard in zip(left, shards, strict=False)}
            left = left[len(shards) :]
        looked |= {file.path: self._look(dataset, file, columns) for file in left}
        return {key: shard for key, shard in looked.items() if shard is not None}

    def _look(self, dataset: str, file: FileStatus, columns: Columns) -> ShardListing | None:
        return _inspector.look(dataset, file, columns, lambda path: self.open(path, [HDFS]))

    def _detour(self, node: str, path: str, offset: int, length: int) -> pa.Buffer:
        content = pa.allocate_buffer(length)
        what = {"hdfs": path, "offset": offset, "length": length}
        self.peer(node).read_into(what, pa.FixedSizeBufferWriter(content), "input")
        return content
