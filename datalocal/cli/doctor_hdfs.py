"""What `datalocal doctor` proves of the HDFS in which the data sets lie: the NameNode's own word beside the cluster file."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from datalocal.cli.doctor_ import Finding

if TYPE_CHECKING:
    from datalocal.spec.cluster import Cluster, Storage
    from datalocal.storage.hdfs.namenode import NameNode
    from datalocal.storage.hdfs.webhdfs import FileStatus

_SHOWN = 5
"""Names in one finding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataNode:
    """One DataNode as the NameNode knows it."""

    host: str
    ip: str
    state: str
    """`In Service`, or what its administrator does with it; `dead` where it does not report."""
    rack: str
    """Network location; empty where the NameNode does not tell it."""

    @property
    def names(self) -> tuple[str, ...]:
        """How a cluster file may call it. Lower case."""
        return tuple(name.lower() for name in (self.ip, self.host, self.host.partition(".")[0]))

    def __str__(self) -> str:
        return f"{self.host} ({self.ip})"


def examine_hdfs(cluster: Cluster) -> Iterator[Finding]:
    """The NameNode, its DataNodes, their names and racks beside the cluster file's, what may be written, and the files."""
    from datalocal.errors import StorageError
    from datalocal.storage.hdfs.namenode import NameNode

    assert cluster.hdfs is not None
    try:
        namenode = NameNode(cluster.hdfs)
        url, info = _active(cluster.hdfs, namenode.urls)
    except StorageError as error:
        yield Finding(check="HDFS: NameNode", state="fail", found=error.message, mend=error.hint)
        return
    found = datanodes(info)
    yield serving(url, info)
    yield reporting(found, int(info.get("NumberOfMissingBlocks", 0)))
    yield mapping(cluster, found)
    yield racks(cluster, found)
    if not info.get("Safemode"):
        yield _writable(namenode, cluster.hdfs.root)
    yield _files(namenode, cluster.hdfs.root)


def datanodes(info: Mapping[str, Any]) -> list[DataNode]:
    """All DataNodes of the bean `NameNodeInfo`, by host."""
    found = []
    for key, dead in (("LiveNodes", False), ("DeadNodes", True)):
        for name, told in json.loads(info.get(key, "{}")).items():
            host, ip = name.rpartition(":")[0], str(told.get("xferaddr", "")).rpartition(":")[0]
            state = "dead" if dead else str(told.get("adminState", "In Service"))
            found.append(DataNode(host=host, ip=ip, state=state, rack=str(told.get("location", ""))))
    return sorted(found, key=lambda node: node.host)


def serving(url: str, info: Mapping[str, Any]) -> Finding:
    """Whether the NameNode takes changes."""
    if told := str(info.get("Safemode", "")):
        mend = (
            "it ends by itself when enough blocks are reported: start the DataNodes, see `hdfs dfsadmin -safemode get`"
        )
        return Finding(check="HDFS: NameNode", state="fail", found=f"{url}: {told.partition('. ')[0]}", mend=mend)
    return Finding(check="HDFS: NameNode", state="ok", found=f"{url} is active and takes changes")


def reporting(found: Sequence[DataNode], missing_blocks: int) -> Finding:
    """Who is dead or on its way out, and whether blocks are missing for it."""
    check, mend = "HDFS: DataNodes", "`hdfs dfsadmin -report` tells more; start those that should be there"
    live = [node for node in found if node.state != "dead"]
    dead = [str(node) for node in found if node.state == "dead"]
    leaving = [f"{node} is {node.state.lower()}" for node in live if node.state != "In Service"]
    words = [f"{len(live)} live", *([f"dead: {_some(dead)}"] if dead else []), *leaving[:_SHOWN]]
    if missing_blocks or not live:
        words.append(f"{missing_blocks} blocks are on none of them")
        return Finding(check=check, state="fail", found="; ".join(words), mend=mend)
    if dead or leaving:
        return Finding(check=check, state="warn", found="; ".join(words), mend=mend)
    return Finding(check=check, state="ok", found=words[0])


def mapping(cluster: Cluster, found: Sequence[DataNode]) -> Finding:
    """Every DataNode is one node of the cluster file by all of its names, and every storage node has its DataNode."""
    check, mend = "HDFS: host mapping", "write each DataNode's IP address and host name into `hosts` of its node"
    known = {
        node: {cluster.node_of_host[name] for name in node.names if name in cluster.node_of_host} for node in found
    }
    twofold = [f"{node} is {' and '.join(sorted(of))}" for node, of in known.items() if len(of) > 1]
    without = sorted({node.name for node in cluster.storage_nodes} - {name for of in known.values() for name in of})
    if twofold or without:
        words = [*twofold[:_SHOWN], *([f"no DataNode is known as {_some(without)}"] if without else [])]
        return Finding(check=check, state="fail", found="; ".join(words), mend=mend)
    strangers = [str(node) for node, of in known.items() if not of]
    if strangers:
        words = [f"{_some(strangers)}: no node of the cluster file, what lies only there is local to nobody"]
        return Finding(check=check, state="warn", found=words[0], mend=mend)
    return Finding(check=check, state="ok", found=f"{len(found)} DataNodes are the cluster file's storage nodes")


def racks(cluster: Cluster, found: Sequence[DataNode]) -> Finding:
    """Whether the cluster file and HDFS put the same nodes together, whatever they call it."""
    check = "HDFS: racks"
    theirs: dict[str, set[str]] = defaultdict(set)
    ours: dict[str, set[str]] = defaultdict(set)
    for node in found:
        name = _node_of(cluster, node)
        if node.rack and name is not None:
            theirs[node.rack].add(name)
            ours[cluster.rack_of(name)].add(name)
    if not theirs:
        return Finding(check=check, state="ok", found="the NameNode does not tell them")
    apart = [rack for rack, members in sorted(ours.items()) if members not in theirs.values()]
    if apart:
        told = "; ".join(f"{rack}: {_some(sorted(members))}" for rack, members in sorted(theirs.items())[:_SHOWN])
        mend = "HDFS places replicas by its own table (`net.topology.*`): make it and `rack` in the cluster file agree"
        words = f"HDFS has other nodes together than {_some(apart)} of the cluster file: {told}"
        return Finding(check=check, state="warn", found=words, mend=mend)
    return Finding(check=check, state="ok", found=f"{len(theirs)}, as in the cluster file")


def _node_of(cluster: Cluster, node: DataNode) -> str | None:
    return next((cluster.node_of_host[name] for name in node.names if name in cluster.node_of_host), None)


def _writable(namenode: NameNode, root: str) -> Finding:
    """Make a folder where writers put their unfinished files, and take it away again."""
    import uuid

    from datalocal.errors import StorageError

    folder = f"{root}/.incoming/doctor-{uuid.uuid4().hex}"
    try:
        namenode.make_folder(folder)
        namenode.delete(folder)
    except StorageError as error:
        mend = f"`hdfs dfs -mkdir -p {root}` and -chown it to who runs the workers, or set `storage.user` or `storage.root`"
        return Finding(check="HDFS: permissions", state="fail", found=error.message, mend=mend)
    return Finding(check="HDFS: permissions", state="ok", found=f"may write below {root}")


def _files(namenode: NameNode, root: str) -> Finding:
    from datalocal.errors import StorageError
    from datalocal.storage.hdfs.namenode import MissingError

    try:
        return files(root, namenode.files(root))
    except MissingError:
        return files(root, [])
    except StorageError as error:
        return Finding(check="HDFS: files", state="fail", found=error.message, mend=error.hint)


def files(root: str, found: Sequence[FileStatus]) -> Finding:
    """Whether shards are what locality can use: one block each, and replicas instead of stripes."""
    split = [file.path for file in found if file.bytes > file.block_bytes and not file.erasure_coded]
    coded = [file.path for file in found if file.erasure_coded]
    words = [f"{len(found)} below {root}"]
    if split:
        words.append(f"{len(split)} are more than one block: {_some(split)}")
    if coded:
        words.append(f"{len(coded)} are erasure-coded, so that no node is theirs: {_some(coded)}")
    mend = "`datalocal ingest` writes one block per shard; a copy with a larger dfs.blocksize, or without EC, is local again"
    if split or coded:
        return Finding(check="HDFS: files", state="warn", found="; ".join(words), mend=mend)
    return Finding(check="HDFS: files", state="ok", found=words[0])


def _active(storage: Storage, urls: Sequence[str]) -> tuple[str, Mapping[str, Any]]:
    """The active NameNode and its bean `NameNodeInfo`. Raises StorageError with what each of them says."""
    from datalocal.errors import StorageError

    problems = []
    for url in urls:
        try:
            state, info = (_bean(storage, url, name) for name in ("NameNodeStatus", "NameNodeInfo"))
        except (OSError, ValueError, StorageError) as error:
            problems.append(f"{url}: {error}")
            continue
        if state.get("State") == "active":
            return url, info
        problems.append(f"{url} is {state.get('State', 'in no state that it tells')}")
    raise StorageError(
        f"no NameNode is active: {'; '.join(problems)}", "`hdfs haadmin -getAllServiceState`, and their logs"
    )


def _bean(storage: Storage, url: str, name: str) -> Mapping[str, Any]:
    """A bean of the NameNode's JMX, empty while it is starting. Raises OSError, ValueError, and StorageError without a ticket."""
    import urllib.parse

    from datalocal.metering.jmx import jmx
    from datalocal.storage.hdfs.namenode import negotiate

    asker = negotiate(urllib.parse.urlsplit(url).hostname or "") if storage.authentication == "kerberos" else ""
    seconds = storage.namenode_timeout_seconds
    return jmx(url, f"service=NameNode,name={name}", timeout_seconds=seconds, authorization=asker) or {}


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
