"""One node of an embedded cluster: its store (Arrow Flight over its folder) and its dask worker, in one process.

Nothing heavy is imported at the top: the node's task processes import this module again when they are spawned.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datalocal.launch.process import read_message, say_ready

if TYPE_CHECKING:
    from datalocal.metering.witness import Witnesses
    from datalocal.spec.cluster import Cluster, Node
    from datalocal.storage.server import OpenHdfs


def main() -> None:
    """Serve until SIGTERM, or until the owner is gone where the message says `hold`."""
    message = {"host": "127.0.0.1"} | read_message()
    os.umask(0o077)  # a node's folder is nobody else's
    asyncio.run(_serve(message))
    os._exit(0)  # a task thread that still waits for its child must not keep a stopped node alive


async def _serve(message: dict[str, Any]) -> None:
    from distributed import Worker

    from datalocal.errors import DatalocalError
    from datalocal.execution import worker as runtime
    from datalocal.execution.dask import node_resources
    from datalocal.execution.facts import own_facts
    from datalocal.launch.head import until_told
    from datalocal.spec.cluster import Cluster
    from datalocal.storage.server import StoreServer
    from datalocal.tasks.model import NodeContext

    cluster = Cluster.model_validate(message["cluster"])
    node = cluster.node(message["node"])
    root = Path(message["root"])
    root.mkdir(parents=True, exist_ok=True)
    root.chmod(0o700)
    try:
        store = StoreServer(
            node=node.name,
            root=root,
            token=message["token"],
            host=message["host"],
            free_disk_floor_bytes=cluster.free_disk_floor_bytes,
            disk_bytes=node.disk_bytes,
            hdfs=_hdfs_view(cluster, node.name, root, message["token"]),
        )
    except DatalocalError as error:
        say_ready({"error": f"{node.name}: {error.message}", "hint": error.hint})
        sys.exit(1)
    context = NodeContext(name=node.name, root=root, token=message["token"], cores=node.cores, executor="dask")
    runtime.install(runtime.NodeRuntime(context, _witnesses(cluster, node, message)))
    facts = own_facts(node.name, cores=node.cores, store=store.location, gpus=node.gpus == "auto")
    worker = await Worker(
        message["scheduler"],
        name=node.name,
        host=message["host"],
        nthreads=node.slots + 4,  # slots are counted by resources; the rest is for small control tasks
        resources=node_resources(node.name, node.slots),
        memory_limit=0,  # tasks run in children of their own; dask's limits would count the wrong process
        local_directory=str(root / "tmp"),
        startup_information={"datalocal": lambda _worker: asdict(facts)},
        dashboard=False,
        dashboard_address="127.0.0.1:0",
    )
    say_ready({"store": store.location, "worker": worker.address})
    waiting = asyncio.create_task(until_told(hold=message["hold"]))
    finished = asyncio.create_task(worker.finished())
    await asyncio.wait({waiting, finished}, return_when=asyncio.FIRST_COMPLETED)
    runtime.runtime().rest()
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(worker.close(executor_wait=False, reason="node stopped"), timeout=3)
    store.close()


def _witnesses(cluster: Cluster, node: Node, message: dict[str, Any]) -> Witnesses | None:
    """The byte counters that are this node's alone; on a loopback that all nodes share there are none."""
    if cluster.kind == "embedded":
        return None
    from datalocal.metering.witness import Witnesses
    from datalocal.storage.sockets import tcp_sockets

    def control() -> int:
        return sum(count.received for (_, peer), count in tcp_sockets().items() if peer[0] == head)

    hdfs, head = cluster.hdfs, cluster.address("head")
    if hdfs is None or node.role != "storage":
        return Witnesses(control=control)
    trace = message.get("datanode_log") or hdfs.datanode_log
    return Witnesses(
        control=control,
        datanode=(cluster.address(node.name), hdfs.datanode_http_port),
        trace=Path(trace) if trace else None,
    )


def _hdfs_view(cluster: Cluster, node: str, root: Path, token: str) -> OpenHdfs | None:
    """How this node's server reads HDFS for others; None where there is none."""
    if cluster.hdfs is None:
        return None
    from datalocal.storage.counting import ByteCounter
    from datalocal.storage.hdfs.client import HdfsStore

    return lambda: HdfsStore(cluster, node=node, root=root, stores={}, token=token, counter=ByteCounter())


if __name__ == "__main__":
    main()
