"""Where the replicas of a new shard go: HDFS's default rule for a writer outside the DataNodes."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import lru_cache

import numpy as np

from datalocal.errors import PlacementError
from datalocal.spec.cluster import Cluster


def replica_nodes(
    shard_number: int, cluster: Cluster, alive: Collection[str], replication: int, seed: int
) -> tuple[str, ...]:
    """The storage nodes for the replicas of a shard, first the first to be written; all different. Pure.

    HDFS's rule: the first replica on any node, the second in another rack, the third in the second's rack, further ones
    anywhere, but at most ``(replication - 1) // racks + 2`` in a rack. HDFS draws at random; here every node of a round of as
    many shards as there are nodes is first once, and where the rule leaves a choice the node with the fewest replicas so
    far is taken, ties in random order. Where a rule cannot be kept (one rack only) any other node will do. Raises
    PlacementError when fewer storage nodes are up than replicas are asked for.
    """
    storage = tuple(node.name for node in cluster.storage_nodes)
    nodes = tuple((name, cluster.rack_of(name)) for name in storage if name in alive)
    if replication > len(nodes):
        away = ", ".join(sorted(set(storage) - set(alive)))
        raise PlacementError(
            f"{replication} replicas need as many storage nodes that are up; there are {len(nodes)} of {len(storage)}"
            + (f" (not up: {away})" if away else ""),
            "bring the nodes up (`datalocal cluster status`), or ask for fewer replicas",
        )
    turn, place = divmod(shard_number, len(nodes))
    return _round(nodes, replication, seed, turn)[0][place]


_ROUNDS_TOGETHER = 64
"""Rounds over which loads are carried on: what one round leaves uneven, the next ones even out, and random access stays cheap."""


@lru_cache(maxsize=4 * _ROUNDS_TOGETHER)
def _round(
    nodes: tuple[tuple[str, str], ...], replication: int, seed: int, turn: int
) -> tuple[tuple[tuple[str, ...], ...], tuple[tuple[str, int], ...]]:
    """The replicas of as many shards as there are nodes (every node is first once), and what each node holds after them."""
    order = [nodes[i][0] for i in np.random.default_rng((seed, turn)).permutation(len(nodes))]
    rack, load = dict(nodes), dict.fromkeys(order, 0)
    if turn % _ROUNDS_TOGETHER:
        load |= dict(_round(nodes, replication, seed, turn - 1)[1])
    never_first = list(order)
    chosen: list[tuple[str, ...]] = []
    while never_first:
        replicas = [min(never_first, key=load.__getitem__)]  # the first of equals, and `order` is random
        never_first.remove(replicas[0])
        while len(replicas) < replication:
            replicas.append(min(_allowed(order, replicas, rack, replication), key=load.__getitem__))
        for name in replicas:
            load[name] += 1
        chosen.append(tuple(replicas))
    return tuple(chosen), tuple(load.items())


def _allowed(order: Sequence[str], replicas: Sequence[str], rack: dict[str, str], replication: int) -> list[str]:
    """The nodes that may take the next replica."""
    left = [name for name in order if name not in replicas]
    used = [rack[name] for name in replicas]
    if len(replicas) == 1:
        wanted = [name for name in left if rack[name] != used[0]]
    elif len(replicas) == 2:
        # Both in one rack (there was no other): HDFS would now go to another one, which there is not either.
        wanted = [name for name in left if rack[name] == used[1]]
    else:
        at_most = (replication - 1) // len(set(rack.values())) + 2
        wanted = [name for name in left if used.count(rack[name]) < at_most]
    return wanted or left
