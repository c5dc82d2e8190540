"""One node: its store (Arrow Flight over its folder) and its dask worker, in one process.

Nothing heavy is imported at the top: the node's task processes import this module again when they are spawned.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datalocal.errors import ClusterError, DatalocalError
from datalocal.launch.bounds import stay_within
from datalocal.launch.process import read_message, say_ready

if TYPE_CHECKING:
    from distributed import Worker

    from datalocal.execution.base import NodeFacts
    from datalocal.metering.witness import Witnesses
    from datalocal.spec.cluster import Cluster, Node, Storage
    from datalocal.spec.joining import Tls
    from datalocal.storage.server import OpenHdfs


@dataclass(frozen=True, slots=True, kw_only=True)
class Joining:
    """What a node needs to join its cluster."""

    cluster: Cluster
    node: Node
    root: Path
    """Its folder, its disk."""
    scheduler: str
    token: str = field(repr=False)
    tls: Tls | None = None
    wait_seconds: float | None = None
    """How long to wait for the scheduler; None: for ever."""
    datanode_log: str | None = None
    """File with the clienttrace of the DataNode beside it, where the launcher knows better than the cluster file."""


def main() -> None:
    """Serve until SIGTERM, or until the owner is gone where the message says `hold`."""
    from datalocal.spec.cluster import Cluster

    message = read_message()
    cluster = Cluster.model_validate(message["cluster"])
    joining = Joining(
        cluster=cluster,
        node=cluster.node(message["node"]),
        root=Path(message["root"]),
        scheduler=message["scheduler"],
        token=message["token"],
        datanode_log=message.get("datanode_log"),
    )
    try:
        run(joining, ready=say_ready, hold=message["hold"])
    except DatalocalError as error:
        say_ready({"error": f"{joining.node.name}: {error.message}", "hint": error.hint})
        sys.exit(1)
    os._exit(0)  # a task thread that still waits for its child must not keep a stopped node alive


def run(joining: Joining, *, ready: Callable[[Mapping[str, Any]], None], hold: bool = False) -> None:
    """Join the cluster and serve until SIGTERM (or, with `hold`, until the end of stdin); `ready` hears {store, worker}.

    Raises ClusterError: refused by the scheduler, a port in use, a folder that cannot be used, the scheduler gone.
    """
    import dask

    from datalocal.launch.head import QUIET

    dask.config.set(QUIET)
    stay_within(joining.node, alone=joining.cluster.kind == "existing" and not joining.cluster.shared_host)
    os.umask(0o077)  # a node's folder is nobody else's
    asyncio.run(_serve(joining, ready, hold=hold))


async def _serve(joining: Joining, ready: Callable[[Mapping[str, Any]], None], *, hold: bool) -> None:
    from datalocal.execution import worker as runtime
    from datalocal.execution.facts import own_facts
    from datalocal.launch.head import asked_to_stop
    from datalocal.storage.server import StoreServer
    from datalocal.tasks.model import NodeContext

    node, address = joining.node, joining.cluster.address(joining.node.name)
    _make(joining.root)
    store = StoreServer(
        node=node.name,
        root=joining.root,
        token=joining.token,
        host=address,
        free_disk_floor_bytes=joining.cluster.free_disk_floor_bytes,
        disk_bytes=node.disk_bytes,
        tls=joining.tls,
        hdfs=_hdfs_view(joining),
    )
    context = NodeContext(
        name=node.name,
        root=joining.root,
        token=joining.token,
        cores=node.cores,
        executor="dask",
        tls=joining.tls,
    )
    runtime.install(runtime.NodeRuntime(context, _witnesses(joining), memory_bytes=node.memory_bytes))
    facts = own_facts(node.name, cores=node.cores, store=store.location, gpus=node.gpus == "auto")
    asked = asyncio.create_task(asked_to_stop(hold=hold).wait())
    try:
        starting = asyncio.create_task(_worker(joining, address, facts))
        await asyncio.wait({asked, starting}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():  # told to stop while it waits for the scheduler
            return
        worker = starting.result()
        ready({"store": store.location, "worker": worker.address})
        await asyncio.wait({asked, asyncio.create_task(worker.finished())}, return_when=asyncio.FIRST_COMPLETED)
        runtime.runtime().rest()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(worker.close(executor_wait=False, reason="node stopped"), timeout=3)
    finally:
        store.close()
    if not asked.done():
        raise ClusterError(
            f"the scheduler at {joining.scheduler} is gone", "start the node again when its cluster is up"
        )


async def _worker(joining: Joining, address: str, facts: NodeFacts) -> Worker:
    from distributed import Worker

    from datalocal.execution.dask import node_resources
    from datalocal.execution.handshake import ask_for_admission
    from datalocal.execution.security import check_scheduler, security

    node = joining.node
    check_scheduler(joining.scheduler, joining.tls)
    if joining.cluster.kind == "existing":
        name, patience = joining.cluster.name, joining.wait_seconds
        await ask_for_admission(joining.scheduler, joining.tls, facts, cluster=name, wait_seconds=patience)
    worker = Worker(
        joining.scheduler,
        name=node.name,
        host=address,
        security=security(joining.tls),
        nthreads=node.slots + 4,  # slots are counted by resources; the rest is for small control tasks
        resources=node_resources(node.name, node.slots),
        memory_limit=0,  # tasks run in children of their own; dask's limits would count the wrong process
        local_directory=str(joining.root / "tmp"),
        startup_information={"datalocal": lambda _worker: asdict(facts)},
        death_timeout=joining.wait_seconds,
        dashboard=False,
        dashboard_address="127.0.0.1:0",  # also without the dashboard dask serves HTTP, by default on every interface
    )
    try:
        return await worker
    except (OSError, RuntimeError, ValueError, TimeoutError) as error:  # dask wraps what the scheduler said
        raise ClusterError(
            f"the scheduler at {joining.scheduler} did not take the worker: {error.__cause__ or error}",
            f"does another worker run under the name {node.name}? Stop it first",
        ) from None


def _make(root: Path) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
        root.chmod(0o700)
    except OSError as error:
        raise ClusterError(f"the node's folder {root} cannot be used: {error.strerror or error}") from None


def _witnesses(joining: Joining) -> Witnesses | None:
    """The byte counters that are this node's alone; on a loopback that all nodes share there are none."""
    from datalocal.spec.joining import is_loopback

    cluster, node = joining.cluster, joining.node
    if is_loopback(cluster.address(node.name)):
        return None
    from datalocal.metering.witness import Sockets, Witnesses
    from datalocal.storage.sockets import host_sockets, tcp_sockets

    hdfs, head = cluster.hdfs, cluster.address("head")
    ports = _namenode_ports(hdfs) if hdfs is not None and node.role == "storage" else frozenset()

    def control() -> Sockets:
        at, own = socket.gethostbyname(head), tcp_sockets()
        ours = {ends: count.received for ends, count in own.items() if ends[1][0] == at}
        others = host_sockets() if ports else {}  # the node's own reads of HDFS tell their questions themselves
        return ours | {
            ends: count.received for ends, count in others.items() if ends[1][1] in ports and ends not in own
        }

    if hdfs is None or node.role != "storage":
        return Witnesses(control=control)
    trace = joining.datanode_log or hdfs.datanode_log
    return Witnesses(
        control=control,
        datanode=(cluster.address(node.name), hdfs.datanode_http_port),
        trace=Path(trace) if trace else None,
    )


def _namenode_ports(hdfs: Storage) -> frozenset[int]:
    from datalocal.storage.hdfs.where import find_hdfs, rpc_ports

    return rpc_ports(find_hdfs(hdfs))


def _hdfs_view(joining: Joining) -> OpenHdfs | None:
    """How this node's server reads HDFS for others; None where there is none."""
    cluster = joining.cluster
    if cluster.hdfs is None:
        return None
    from datalocal.storage.counting import ByteCounter
    from datalocal.storage.hdfs.client import HdfsStore

    return lambda: HdfsStore(
        cluster, node=joining.node.name, root=joining.root, stores={}, token=joining.token, counter=ByteCounter()
    )


if __name__ == "__main__":
    main()
