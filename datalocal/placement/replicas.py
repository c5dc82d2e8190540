"""Which living nodes hold what, from whom to read, and where copies of a result go. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise

import numpy as np

from datalocal.catalog.model import Catalog
from datalocal.errors import PlacementError
from datalocal.placement.problem import Mask
from datalocal.spec.cluster import Cluster


def kept_shards(shards: int, share: float) -> Mask:
    """[shards] those that a cache for a share of them keeps: the same ones always, evenly among all."""
    return np.diff((np.arange(shards + 1) * share).astype(np.int64)) > 0


def live_holders(catalog: Catalog, cluster: Cluster) -> list[tuple[str, ...]]:
    """[N] names of the nodes of `cluster` that hold each shard, sorted. Raises PlacementError when a shard has none."""
    known = {node.name for node in cluster.nodes}
    names = catalog.nodes
    places = catalog.replica_nodes.tolist()
    offsets = catalog.replica_offsets.tolist()
    found = [tuple(sorted({names[place] for place in places[lo:hi]})) for lo, hi in pairwise(offsets)]
    if not known.issuperset(names):  # nodes that the catalog knows and that are not up
        found = [tuple(name for name in nodes if name in known) for nodes in found]
    lost = [shard for shard, nodes in enumerate(found) if not nodes]
    if lost:
        raise no_replica(catalog.path(lost[0]), len(lost), len(catalog), len(cluster.nodes))
    return found


def no_replica(path: str, count: int, total: int, nodes: int) -> PlacementError:
    """The error for shards that nobody has."""
    return PlacementError(
        f"{path} has no replica on any of the {nodes} nodes that are up"
        + (f" ({count} of {total} shards have none)" if total > 1 else ""),
        "bring the nodes that hold it back (`datalocal cluster status`), or ingest the data set again",
    )


class Readers:
    """Orders sources by nearness, and spreads reads of equal nearness over their holders by rows. Deterministic."""

    def __init__(self, cluster: Cluster) -> None:
        self._rack = {node.name: node.rack for node in cluster.nodes}
        self._read: dict[str, int] = {}

    def order(self, reader: str, holders: Sequence[str], rows: int) -> tuple[str, ...]:
        """The holders, best first: the reader itself, then its rack, then who had the least to send so far."""
        rack, racks, read = self._rack[reader], self._rack, self._read
        if reader in holders:
            others = sorted((racks[name] != rack, name) for name in holders if name != reader)
            return (reader, *(name for _, name in others))
        ordered = sorted((racks[name] != rack, read.get(name, 0), name) for name in holders)
        first = ordered[0][2]
        read[first] = read.get(first, 0) + rows
        return tuple(name for _, _, name in ordered)


class Writers:
    """Chooses where results go: holders of the input first, then other nodes by HDFS's default rule, evenly by rows."""

    def __init__(self, cluster: Cluster, candidates: Collection[str], written: Mapping[str, int] | None = None) -> None:
        self._rack = {node.name: node.rack for node in cluster.nodes}
        self._candidates = sorted(candidates)
        self._written: dict[str, int] = dict(written or {})

    def choose(self, first: str | None, preferred: Sequence[str], count: int, rows: int) -> tuple[str, ...]:
        """`count` distinct nodes (fewer when there are no more): `first`, then `preferred`, then any candidate.

        Among equals HDFS's rule decides: the second copy in another rack than the first, the third in the rack of the
        second, further ones where the rack has the fewest; then who got the least so far; then the name.
        """
        chosen = [] if first is None else [first]
        for pool in (preferred, self._candidates):
            if len(chosen) >= count:
                break
            left = sorted(name for name in pool if name not in chosen)
            if len(left) <= count - len(chosen):  # all of them, so there is nothing to choose
                chosen += left
                continue
            while len(chosen) < count:
                best = min(left, key=lambda name: (self._rack_rule(chosen, name), self._written.get(name, 0), name))
                left.remove(best)
                chosen.append(best)
        for name in chosen:
            self._written[name] = self._written.get(name, 0) + rows
        return tuple(chosen[:count])

    def _rack_rule(self, chosen: Sequence[str], name: str) -> int:
        """0 is best."""
        racks = [self._rack[other] for other in chosen]
        if len(racks) == 2 and racks[0] != racks[1]:
            return 0 if self._rack[name] == racks[1] else 1
        return racks.count(self._rack[name])
