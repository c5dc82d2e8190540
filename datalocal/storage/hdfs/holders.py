"""Which nodes of the cluster hold how much of a file. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from datalocal.storage.hdfs.webhdfs import Block, Location

Range: TypeAlias = tuple[int, int]
"""Bytes from (inclusive) and to (exclusive), within a file."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """Bytes of a file (or of its row groups) by node, and the DataNodes that no node of the cluster is known as."""

    bytes: int
    by_node: Mapping[str, int]
    strangers: frozenset[str]
    groups: int = 0
    """Row groups, where they are what was counted."""
    whole: Mapping[str, int] = field(default_factory=dict)
    """Row groups of which a node holds every byte: reading one there costs nothing on the wire."""

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


def held_bytes(blocks: Sequence[Block], node_of_host: Mapping[str, str], groups: Sequence[Range] | None = None) -> Held:
    """Bytes per node over all blocks: a node that has only block 0 of four does not hold the shard.

    With `groups`, the row groups' places in the file, only their bytes count: what is read of a shard is row groups, and
    those that reach over the end of a block are nowhere whole unless one node has both blocks.
    """
    end = max((block.offset + block.bytes for block in blocks), default=0)
    by_node: Counter[str] = Counter()
    whole: Counter[str] = Counter()
    for start, stop in [(0, end)] if groups is None else groups:
        here: Counter[str] = Counter()
        for block in blocks:
            inside = min(stop, block.offset + block.bytes) - max(start, block.offset)
            for node in _nodes_of(block, node_of_host) if inside > 0 else ():
                here[node] += inside
        by_node.update(here)
        whole.update(node for node, count in here.items() if count == stop - start)
    return Held(
        bytes=end if groups is None else sum(stop - start for start, stop in groups),
        by_node=dict(by_node),
        strangers=frozenset(
            f"{location.host} ({location.ip})"
            for block in blocks
            for location in block.locations
            if node_at(location, node_of_host) is None
        ),
        groups=len(groups or ()),
        whole=dict(whole) if groups is not None else {},
    )


def _nodes_of(block: Block, node_of_host: Mapping[str, str]) -> set[str]:
    return {node for location in block.locations if (node := node_at(location, node_of_host)) is not None}
