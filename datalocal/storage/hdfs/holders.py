"""Which nodes of the cluster hold how much of a file. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from datalocal.storage.hdfs.webhdfs import Block, Location


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """Bytes of a file by node, and the DataNodes that no node of the cluster is known as."""

    bytes: int
    by_node: Mapping[str, int]
    strangers: frozenset[str]

    @property
    def best(self) -> tuple[str, ...]:
        """The nodes that hold most of the file, sorted; none where no node holds any of it."""
        most = max(self.by_node.values(), default=0)
        return tuple(sorted(node for node, held in self.by_node.items() if held == most))

    @property
    def local_share(self) -> float:
        """Of the file's bytes, the share that the best node holds."""
        return max(self.by_node.values(), default=0) / self.bytes if self.bytes else 1.0


def node_at(location: Location, node_of_host: Mapping[str, str]) -> str | None:
    """The cluster's name for a DataNode: by IP address, host name or its short form."""
    return next((node_of_host[name] for name in location.names if name in node_of_host), None)


def node_at_address(address: str, blocks: Iterable[Block], node_of_host: Mapping[str, str]) -> str:
    """The node at an IP address, as the cluster file knows it or, where that has names only, as the NameNode names the DataNode
    there; the address itself where neither does.
    """
    there = (location for block in blocks for location in block.locations if location.ip == address)
    named = (node_at(location, node_of_host) for location in there)
    return node_of_host.get(address) or next((node for node in named if node is not None), address)


def held_bytes(blocks: Iterable[Block], node_of_host: Mapping[str, str]) -> Held:
    """Bytes per node over all blocks: a node that has only block 0 of four does not hold the shard."""
    by_node: Counter[str] = Counter()
    strangers: set[str] = set()
    total = 0
    for block in blocks:
        total += block.bytes
        for location in block.locations:
            node = node_at(location, node_of_host)
            if node is None:
                strangers.add(f"{location.host} ({location.ip})")
            else:
                by_node[node] += block.bytes
    return Held(bytes=total, by_node=dict(by_node), strangers=frozenset(strangers))
