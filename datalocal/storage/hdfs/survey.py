"""A data set in HDFS as the cluster sees it: shards, who holds most of each, and what is to be said about that."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from datalocal.errors import DatasetError
from datalocal.spec.cluster import Cluster
from datalocal.storage.hdfs.holders import Held, Range, held_bytes
from datalocal.storage.hdfs.namenode import MissingError, NameNode
from datalocal.storage.hdfs.webhdfs import FileStatus
from datalocal.storage.listing import ShardListing

_AT_A_TIME = 16
_SHOWN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One file of the data set that may be a shard; its path is the key."""

    file: FileStatus
    holders: tuple[str, ...]
    """The storage nodes that hold the most bytes of it; none: it has no preferred node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """The data set at one moment."""

    shards: tuple[ShardListing, ...]
    holders: Mapping[str, tuple[str, ...]]
    """By key."""
    remarks: tuple[str, ...]

    def on(self, node: str) -> list[ShardListing]:
        """The shards that are as near to `node` as to any other: it holds most of them, or no node does."""
        return [shard for shard in self.shards if not self.holders[shard.key] or node in self.holders[shard.key]]


Look = Callable[[Sequence[Found]], Mapping[str, ShardListing]]
"""Footers and labels by key, read where the shards lie; a key that is missing is no shard after all."""


def survey(namenode: NameNode, cluster: Cluster, folder: str, look: Look) -> Survey:
    """What lies in `folder`; empty where there is no such folder.

    Raises DatasetError when blocks have replicas and none of their DataNodes is a node of the cluster: names that do not
    match are the classic silent killer of locality.
    """
    try:
        files = namenode.files(folder)
    except MissingError:
        files = []
    names, storage = cluster.node_of_host, {node.name for node in cluster.storage_nodes}
    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        asked = pool.map(lambda file: namenode.blocks(file, f"{folder}/{file.path}"), files)
        blocks = dict(zip((file.path for file in files), asked, strict=True))
    held = {path: held_bytes(its, names) for path, its in blocks.items()}
    _check_names(folder, held, cluster)

    def found(files: Iterable[FileStatus]) -> list[Found]:
        return [Found(file=file, holders=_holders(file, held[file.path], storage)) for file in files]

    looked = look(found(files))
    split = {path: shard for path, shard in looked.items() if len(blocks[path]) > 1 and shard.group_starts}
    held |= {path: held_bytes(blocks[path], names, _row_groups(shard)) for path, shard in split.items()}
    kept = found(file for file in files if file.path in looked)
    return Survey(
        shards=tuple(looked[each.file.path] for each in kept),
        holders={each.file.path: each.holders for each in kept},
        remarks=tuple(_remarks(kept, held)),
    )


def _row_groups(shard: ShardListing) -> list[Range]:
    return [(start, start + size) for start, size in zip(shard.group_starts, shard.group_bytes, strict=True)]


def _holders(file: FileStatus, held: Held, storage: set[str]) -> tuple[str, ...]:
    return () if file.erasure_coded else tuple(node for node in held.best if node in storage)


def _check_names(folder: str, held: Mapping[str, Held], cluster: Cluster) -> None:
    strangers = sorted({name for each in held.values() for name in each.strangers})
    if not strangers or any(each.by_node for each in held.values()):
        return
    known = sorted(cluster.node_of_host)
    raise DatasetError(
        f"no replica of {folder} lies on a node of the cluster: HDFS names the DataNodes {', '.join(strangers[:5])}, "
        f"the cluster's nodes are known as {', '.join(known[:10])}",
        "give each node its address and host name under `hosts` in the cluster config",
    )


def _remarks(found: Sequence[Found], held: Mapping[str, Held]) -> list[str]:
    told = []
    coded = [each.file.path for each in found if each.file.erasure_coded]
    if coded:
        told.append(
            f"{_some(coded)}: erasure-coded, so no node is preferred: every read gathers pieces from several nodes"
        )
    nowhere = [each.file.path for each in found if not each.holders and not each.file.erasure_coded]
    if nowhere:
        told.append(
            f"{_some(nowhere)}: no living DataNode of this cluster holds a replica; any node may read it from afar"
        )
    split = [each for each in found if each.holders and held[each.file.path].local_share < 1]
    if split:
        least = min((held[each.file.path] for each in split), key=lambda one: one.local_share)
        whole = max((least.whole.get(node, 0) for node in least.best), default=0)
        groups = f" ({whole} of {least.groups} row groups whole)" if least.groups else ""
        told.append(
            f"{_some([each.file.path for each in split])}: its blocks lie on different nodes, and the best node has "
            f"{100 * least.local_share:.0f} % of it at least{groups}: a shard should be one block"
        )
    strangers = sorted({name for each in held.values() for name in each.strangers})
    if strangers:
        told.append(f"DataNodes that are no nodes of this cluster hold replicas: {', '.join(strangers[:5])}")
    return told


def _some(keys: Sequence[str]) -> str:
    more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
    return ", ".join(keys[:_SHOWN]) + more
