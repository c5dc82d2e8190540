"""A task's wires: the cluster's stores and the run process, as the node that runs the task reaches them."""

from __future__ import annotations

from datalocal.storage.client import Store
from datalocal.storage.counting import ByteCounter
from datalocal.storage.opening import open_store
from datalocal.storage.sink import SinkClient
from datalocal.tasks.model import NodeContext, Wiring


def store_of(wiring: Wiring, ctx: NodeContext, counter: ByteCounter) -> Store:
    """The cluster's store as this node sees it. Raises StorageError when HDFS is meant and not known where."""
    return open_store(
        wiring.cluster,
        node=ctx.name,
        root=ctx.root,
        stores=wiring.stores,
        token=ctx.token,
        tls=ctx.tls,
        counter=counter,
    )


def sink_of(wiring: Wiring, ctx: NodeContext, counter: ByteCounter) -> SinkClient:
    """The run process: takes logs, records and checkpoints, and has the job's code."""
    return SinkClient(location=wiring.sink, token=ctx.token, tls=ctx.tls, node=ctx.name, counter=counter)
