"""A preset as arrays: the placement problem, and what its machines can do. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np

from datalocal.estimate.simulation import Machines
from datalocal.placement import synthetic
from datalocal.placement.problem import ROLES, Floats, Names, Power, Problem
from datalocal.spec.preset import NodeGroup, Preset


def build(preset: Preset, *, shards: int | None = None, seed: int = 0) -> tuple[Problem, Machines]:
    """Shards by HDFS's default rule on the nodes that hold data; compute nodes are in racks of their own."""
    groups = sorted(preset.groups, key=lambda group: group.role == "compute")  # holders come first, in file order
    holders = [group for group in groups if group.role != "compute"]
    count = sum(group.count for group in holders)
    laid = synthetic.hdfs(
        shards or preset.shards,
        count,
        replication=preset.replication,
        nodes_per_rack=holders[0].rack_nodes,
        seed=seed,
    )
    rack = list(laid.rack)
    for group in groups[len(holders) :]:
        first = int(rack[-1]) + 1
        rack += [first + number // group.rack_nodes for number in range(group.count)]
    total = len(rack)
    machines = _machines(groups, preset)
    idle, busy = machines.idle_watts, machines.busy_watts
    problem = replace(
        laid,
        shard_bytes=np.full(laid.shards, preset.shard_bytes, dtype=np.int64),
        shard_rows=np.full(laid.shards, preset.shard_rows, dtype=np.int64),
        slots=_each(groups, lambda group: group.slots).astype(np.int64),
        speed=_each(groups, lambda group: group.images_per_second / preset.shard_rows),
        rack=np.array(rack, dtype=np.int32),
        role=_each(groups, lambda group: ROLES.index(group.role)).astype(np.int8),
        alive=np.ones(total, dtype=np.bool_),
        node_names=Names.of(name for group in groups for name in _names(group)),
        rack_names=synthetic.numbered("rack", int(rack[-1]) + 1),
        power=None if idle is None or busy is None else Power(idle_watts=idle, busy_watts=busy),
    )
    return problem, machines


def _machines(groups: list[NodeGroup], preset: Preset) -> Machines:
    disks = all(group.disk_mbyte is not None for group in groups if group.role != "compute")
    power = [group.power for group in groups]
    known = all(each is not None for each in power)
    return Machines(
        link_bytes_per_second=_each(groups, lambda group: group.link_gbit * 1e9 / 8),
        disk_bytes_per_second=_each(groups, lambda group: (group.disk_mbyte or 1e9) * 1e6) if disks else None,
        uplink_bytes_per_second=preset.uplink_gbit * 1e9 / 8 if preset.uplink_gbit else None,
        idle_watts=_each(groups, lambda group: group.power.idle_watts if group.power else 0) if known else None,
        busy_watts=_each(groups, lambda group: group.power.busy_watts if group.power else 0) if known else None,
    )


def _each(groups: list[NodeGroup], value: Callable[[NodeGroup], float]) -> Floats:
    return np.repeat(np.array([float(value(group)) for group in groups]), np.array([group.count for group in groups]))


def _names(group: NodeGroup) -> Iterable[str]:
    digits = len(str(group.count - 1))
    return (f"{group.name}{number:0{digits}d}" for number in range(group.count))
