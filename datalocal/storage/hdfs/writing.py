"""Write one file into HDFS, whole or not at all: a temporary name, all of it again when a pipeline breaks, then a rename."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress

import pyarrow as pa

from datalocal.errors import StorageError
from datalocal.ledger.records import ByteOrigin
from datalocal.spec.cluster import Storage
from datalocal.storage.hdfs.data import data_client
from datalocal.storage.hdfs.holders import node_at
from datalocal.storage.hdfs.namenode import NameNode
from datalocal.storage.hdfs.webhdfs import Block

_ATTEMPTS = 3
"""Whole pipelines; after them one replica is written, and the NameNode is asked to make the others."""
_CLOSE_SECONDS = 16.0
"""hdfs-native waits so long for a file to be complete whose pipeline is broken."""
_SECTOR = 512
"""A block size is a multiple of a checksum's chunk."""


def patience_seconds(storage: Storage) -> float:
    """How long `write_file` may take beside moving the data: until the last of its attempts has failed."""
    one = storage.namenode_timeout_seconds + storage.socket_timeout_seconds + _CLOSE_SECONDS
    return (_ATTEMPTS + 1) * one


def write_file(
    namenode: NameNode,
    storage: Storage,
    path: str,
    chunks: Callable[[], Iterable[pa.Buffer]],
    *,
    size_bytes: int,
    block_bytes: int,
    replication: int,
) -> list[Block]:
    """Write `size_bytes` of `chunks()` to `path` (absolute) as one block; the block's replicas afterwards.

    A failed pipeline leaves a short file under construction: it has a hidden name and is removed. Until the NameNode knows
    that a DataNode is dead it goes on to name it for pipelines; one replica needs no other DataNode. Raises StorageError
    with each attempt's problem.
    """
    incoming, folder = f"{storage.root}/.incoming", path.rpartition("/")[0]
    block = -(-max(block_bytes, size_bytes) // _SECTOR) * _SECTOR
    problems: list[str] = []
    for copies in (*(replication for _ in range(_ATTEMPTS)), 1):
        temporary = f"{incoming}/{uuid.uuid4().hex}"
        try:
            namenode.make_folder(incoming)
            data_client(storage).create(temporary, chunks(), block_bytes=block, replication=copies)
            status = namenode.status(temporary)
            if status.bytes != size_bytes:
                raise StorageError(f"HDFS has {status.bytes} of {size_bytes} bytes")
            if copies != replication:
                namenode.set_replication(temporary, replication)
            namenode.make_folder(folder)
            namenode.rename(temporary, path)
            return namenode.written_blocks(status, path)
        except StorageError as error:
            problems.append(error.message)
            with suppress(StorageError):
                namenode.delete(temporary)
    raise StorageError(
        f"{path} could not be written to HDFS in {_ATTEMPTS + 1} attempts: {'; '.join(dict.fromkeys(problems))}",
        "`hdfs dfsadmin -report` shows DataNodes and their free space",
    )


def hops(
    blocks: Iterable[Block], writer: str, node_of_host: Mapping[str, str]
) -> list[tuple[str, str, int, ByteOrigin]]:
    """(from, to, bytes, origin) of the pipelines that wrote these blocks: the writer to a DataNode, and on from each to the next.

    The writer's own DataNode is the first of the pipeline where it has a replica, as HDFS does it; of the others only which
    they are is known. So only what the writer itself sent is measured, the hops between DataNodes are modelled.
    """
    found: list[tuple[str, str, int, ByteOrigin]] = []
    for block in blocks:
        names = [node_at(location, node_of_host) or location.host for location in block.locations]
        chain = [writer, *sorted(names, key=lambda name: (name != writer, names.index(name)))]
        found += [
            (chain[i], chain[i + 1], block.bytes, "modelled.pipeline" if i else "measured.writer")
            for i in range(len(chain) - 1)
        ]
    return found
