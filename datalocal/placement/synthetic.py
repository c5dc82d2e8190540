"""Clusters that do not exist, for plans at scale and for benchmarks. Pure: the same seed gives the same problem."""

from __future__ import annotations

import numpy as np

from datalocal.placement.problem import Floats, Ints, Names, Nodes, Power, Problem

BLOCK_BYTES = 128 * 1024 * 1024
SPEEDS = (1.0, 2.0, 4.0)
SPEED_SHARES = (0.5, 0.3, 0.2)
IDLE_WATTS = {1.0: 180.0, 2.0: 220.0, 4.0: 300.0}
SHARD_JOULES = {1.0: 450.0, 2.0: 260.0, 4.0: 170.0}
"""Assumed, by speed: newer generations do more with a joule. Their ratios are those of three GPU generations."""


def hdfs(
    shards: int,
    nodes: int,
    *,
    replication: int = 3,
    slots: int = 1,
    nodes_per_rack: int = 40,
    writers_skew: float = 0.0,
    workers: float = 1.0,
    seed: int = 0,
) -> Problem:
    """HDFS's default rule: the first replica on the writer, the second and third on two nodes of one other rack.

    Further replicas lie anywhere else. `writers_skew`: 0 for writers drawn evenly, else the exponent of a Zipf law over
    nodes (loading through few of them). `workers`: the share of nodes, drawn, that have slots (a GPU); the others only
    hold shards. With a single rack all replicas lie anywhere.
    """
    draw = np.random.default_rng(seed)
    weights = np.arange(1, nodes + 1, dtype=np.float64) ** -writers_skew
    writer = draw.choice(draw.permutation(nodes), size=shards, p=weights / weights.sum())
    rack = np.arange(nodes) // nodes_per_rack
    columns = [writer]
    for number in range(1, replication):
        columns.append(_another(draw, columns, rack, nodes_per_rack, number))
    working = draw.permutation(nodes) < round(workers * nodes)
    return _problem(np.stack(columns, axis=1), rack, np.where(working, slots, 0), np.ones(nodes), seed)


def three_speeds(
    shards: int,
    nodes: int,
    *,
    replication: int = 3,
    slots: int = 1,
    nodes_per_rack: int = 40,
    workers: float = 1.0,
    seed: int = 0,
) -> Problem:
    """HDFS's rule over three GPU generations: half of the nodes with speed 1, 30 % with 2, 20 % with 4, in no order."""
    layout = {"replication": replication, "slots": slots, "nodes_per_rack": nodes_per_rack}
    plain = hdfs(shards, nodes, workers=workers, seed=seed, **layout)
    counts = np.floor(np.array(SPEED_SHARES) * nodes).astype(np.int64)
    counts[0] += nodes - counts.sum()
    speed = np.random.default_rng([seed, 3]).permutation(np.repeat(SPEEDS, counts))
    table = plain.replica_nodes.reshape(shards, -1)
    return _problem(table, plain.rack, plain.slots, speed, seed)


def ring(
    shards: int, nodes: int, *, replication: int = 3, slots: int = 1, nodes_per_rack: int = 40, seed: int = 0
) -> Problem:
    """Consistent hashing: a shard lies on the next `replication` nodes from where it hashes to. Excess has far to go."""
    first = np.random.default_rng(seed).integers(nodes, size=shards)
    table = (first[:, None] + np.arange(min(replication, nodes))) % nodes
    return _problem(table, np.arange(nodes) // nodes_per_rack, np.full(nodes, slots), np.ones(nodes), seed)


def _another(draw: np.random.Generator, columns: list[Ints], rack: Ints, nodes_per_rack: int, number: int) -> Ints:
    """One more node per shard, unlike those before it; drawn again where it is."""
    nodes, count = len(rack), len(columns[0])
    several = rack[-1] > 0
    chosen = np.full(count, -1, dtype=np.int64)
    open_ = np.arange(count)
    for attempt in range(10_000):
        if not open_.size:
            return chosen
        strict = several and attempt < 100  # a rack may be too small for the rule
        if number == 2 and strict:
            start = rack[columns[1][open_]] * nodes_per_rack
            node = start + (draw.random(open_.size) * np.minimum(nodes_per_rack, nodes - start)).astype(np.int64)
        else:
            node = draw.integers(nodes, size=open_.size)
        wrong = np.zeros(open_.size, dtype=np.bool_)
        for column in columns:
            wrong |= column[open_] == node
        if number == 1 and strict:
            wrong |= rack[node] == rack[columns[0][open_]]
        chosen[open_[~wrong]] = node[~wrong]
        open_ = open_[wrong]
    raise ValueError(f"{len(columns) + 1} replicas do not fit on {nodes} nodes")


def _problem(table: Ints | Nodes, rack: Ints | Nodes, slots: Ints, speed: Floats, seed: int) -> Problem:
    shards, replication = table.shape
    nodes = len(rack)
    rows = np.asarray(np.random.default_rng([seed, 1]).integers(900, 1100, size=shards), dtype=np.int64)
    return Problem(
        shard_bytes=np.full(shards, BLOCK_BYTES, dtype=np.int64),
        shard_rows=rows,
        replica_offsets=np.arange(shards + 1, dtype=np.int64) * replication,
        replica_nodes=np.sort(table, axis=1).astype(np.int32).ravel(),
        slots=np.asarray(slots, dtype=np.int64),
        speed=np.asarray(speed, dtype=np.float64),
        rack=np.asarray(rack, dtype=np.int32),
        role=np.zeros(nodes, dtype=np.int8),
        alive=np.ones(nodes, dtype=np.bool_),
        shard_names=numbered("part-", shards, ".parquet"),
        node_names=numbered("node", nodes),
        rack_names=numbered("rack", int(rack[-1]) + 1),
        power=_assumed(np.asarray(slots), np.asarray(speed)),
    )


def _assumed(slots: Ints, speed: Floats) -> Power:
    idle = np.array([IDLE_WATTS[each] for each in speed.tolist()])
    joules = np.array([SHARD_JOULES[each] for each in speed.tolist()])
    return Power(idle_watts=idle, busy_watts=idle + joules * slots * speed)


def numbered(before: str, count: int, after: str = "") -> Names:
    """`before`0000`after` and so on, with as many digits as the last one needs; built without Python strings."""
    digits = len(str(max(count - 1, 0)))
    text = np.empty((count, len(before) + digits + len(after)), dtype=np.uint8)
    text[:, : len(before)] = np.frombuffer(before.encode(), np.uint8)
    text[:, len(before) + digits :] = np.frombuffer(after.encode(), np.uint8)
    number = np.arange(count)
    for place in range(digits):
        text[:, len(before) + digits - 1 - place] = ord("0") + number // 10**place % 10
    return Names(offsets=np.arange(count + 1, dtype=np.int64) * text.shape[1], text=text.ravel())
