"""A catalog and a cluster as the arrays of a placement problem. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np

from datalocal.catalog.model import Catalog
from datalocal.placement.problem import ROLES, Names, Power, Problem
from datalocal.placement.replicas import Holders, live_holders
from datalocal.spec.cluster import Cluster


def from_catalog(
    catalog: Catalog,
    cluster: Cluster,
    *,
    shards_per_second: Mapping[str, float] | float = 1.0,
    roles: Collection[str] = ("storage",),
    held: Holders | None = None,
) -> Problem:
    """The problem of a real catalog on the nodes that are up, nodes in order of their names.

    `shards_per_second`: of one slot with one core, for all nodes or by node name; a slot is as fast as its cores.
    `roles`: who works; other nodes get 0 slots. `held`: the nodes that will hold each shard, of `cluster` too; default: those of
    the catalog. Raises PlacementError when a shard of the catalog has no replica on any node of `cluster`.
    """
    nodes = sorted(cluster.nodes, key=lambda node: node.name)
    racks = sorted({node.rack for node in nodes})
    rack = {name: place for place, name in enumerate(racks)}
    holders = live_holders(catalog, cluster) if held is None else held
    each = shards_per_second if isinstance(shards_per_second, Mapping) else {n.name: shards_per_second for n in nodes}
    return Problem(
        shard_bytes=catalog.shard_bytes,
        shard_rows=catalog.shard_rows,
        replica_offsets=holders.offsets,
        replica_nodes=holders.nodes if held is None else held.nodes[np.lexsort((held.nodes, held.owner))],
        slots=np.array([node.slots if node.role in roles else 0 for node in nodes], dtype=np.int64),
        speed=np.array([node.cores * each[node.name] for node in nodes], dtype=np.float64),
        rack=np.array([rack[node.rack] for node in nodes], dtype=np.int32),
        role=np.array([ROLES.index(node.role) for node in nodes], dtype=np.int8),
        alive=np.ones(len(nodes), dtype=np.bool_),
        shard_names=Names.of(catalog.shards),
        node_names=Names.of(node.name for node in nodes),
        rack_names=Names.of(racks),
        power=_power(cluster),
    )


def _power(cluster: Cluster) -> Power | None:
    """The declared watts of a host, for every node; nodes of one host share its watts evenly."""
    if cluster.power is None:
        return None
    share = 1 / len(cluster.nodes) if cluster.shared_host else 1.0
    count = len(cluster.nodes)
    return Power(
        idle_watts=np.full(count, cluster.power.idle_watts * share),
        busy_watts=np.full(count, cluster.power.busy_watts * share),
    )
