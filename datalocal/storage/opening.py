"""Which store a cluster has: the nodes' folders, or HDFS."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from datalocal.spec.cluster import Cluster
from datalocal.spec.joining import Tls
from datalocal.storage.client import Store
from datalocal.storage.counting import ByteCounter


def open_store(
    cluster: Cluster,
    *,
    node: str,
    root: Path | None,
    stores: Mapping[str, str],
    token: str,
    counter: ByteCounter,
    tls: Tls | None = None,
) -> Store:
    """The cluster's store as `node` sees it. Raises StorageError when HDFS is meant and not known where."""
    if cluster.hdfs is None:
        return Store(node=node, root=root, stores=stores, token=token, counter=counter, tls=tls)
    from datalocal.storage.hdfs.client import HdfsStore

    return HdfsStore(cluster, node=node, root=root, stores=stores, token=token, counter=counter, tls=tls)
