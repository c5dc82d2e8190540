"""Two Parquet tables, as any site can export them, read into a placement problem.

shards: `shard` string, `bytes` integer, `rows` integer, `replicas` list of strings (node names)
nodes:  `node` string, `rack` string, `slots` integer, `speed` number (shards per second and slot), `role` string;
        both or none: `idle_watts`, `busy_watts` number (of the whole node, with nothing to do and with every slot at work)
The order of rows does not matter: shards and nodes are numbered by name.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from datalocal.errors import SpecError
from datalocal.placement.problem import ROLES, Ints, Names, Nodes, Power, Problem

Table = Any  # pyarrow has no types


def read_tables(shards_file: Path, nodes_file: Path) -> Problem:
    """The problem that the two tables describe. SpecError names file, column and the first bad value."""
    columns = {"node": "text", "rack": "text", "slots": "integer", "speed": "number", "role": "text"}
    nodes = _read(nodes_file, columns, optional=dict.fromkeys(_WATTS, "number"))
    nodes = _by_name(nodes_file, nodes, "node")
    shards = _read(shards_file, {"shard": "text", "bytes": "integer", "rows": "integer", "replicas": "list"})
    shards = _by_name(shards_file, shards, "shard")
    offsets, holders = _replicas(shards_file, shards, nodes["node"])
    racks = pc.unique(nodes["rack"]).sort()
    role = nodes["role"].to_pylist()
    if strange := sorted(set(role) - set(ROLES)):
        raise SpecError(str(nodes_file), "role", f"{strange[0]!r} is no role", f"roles are {', '.join(ROLES)}")
    return Problem(
        shard_bytes=_integers(shards_file, shards, "bytes", "shard"),
        shard_rows=_integers(shards_file, shards, "rows", "shard"),
        replica_offsets=offsets,
        replica_nodes=holders,
        slots=_integers(nodes_file, nodes, "slots", "node"),
        speed=_speeds(nodes_file, nodes),
        rack=pc.index_in(nodes["rack"], value_set=racks).to_numpy().astype(np.int32),
        role=np.array([ROLES.index(name) for name in role], dtype=np.int8),
        alive=np.ones(len(role), dtype=np.bool_),
        shard_names=_names(shards["shard"]),
        node_names=_names(nodes["node"]),
        rack_names=_names(racks),
        power=_power(nodes_file, nodes),
    )


_WATTS = ("idle_watts", "busy_watts")


_KINDS: dict[str, Callable[[Any], bool]] = {
    "text": lambda kind: pa.types.is_string(kind) or pa.types.is_large_string(kind),
    "integer": pa.types.is_integer,
    "number": lambda kind: pa.types.is_floating(kind) or pa.types.is_integer(kind),
    "list": lambda kind: (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and _KINDS["text"](kind.value_type),
}


def _read(file: Path, columns: dict[str, str], optional: dict[str, str] | None = None) -> Table:
    """These columns, each in one piece, of the kind they should be, without nulls; `optional` ones if one of them is there."""
    try:
        schema = pq.read_schema(file)
    except (OSError, pa.ArrowInvalid) as error:
        raise SpecError(str(file), "", f"cannot be read as Parquet: {error}") from None
    if optional and not set(optional).isdisjoint(schema.names):
        columns = columns | optional
    missing = [name for name in columns if name not in schema.names]
    if missing:
        raise SpecError(
            str(file),
            missing[0],
            "this column is missing",
            f"columns: {', '.join(schema.names)}; needed: {', '.join(columns)}",
        )
    table = pq.read_table(file, columns=list(columns)).combine_chunks()
    read = {}
    for name, kind in columns.items():
        column = table[name]
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        if not _KINDS[kind](column.type):
            raise SpecError(str(file), name, f"is {column.type}, not {'a list of strings' if kind == 'list' else kind}")
        if column.null_count:
            row = pc.index(pc.is_null(column), True).as_py()
            raise SpecError(str(file), name, f"row {row} has no value ({column.null_count:,} rows have none)")
        read[name] = column
    return pa.table(read)


def _by_name(file: Path, table: Table, key: str) -> Table:
    table = table.take(pc.sort_indices(table[key])).combine_chunks()
    names = _whole(table[key])
    if not len(names):
        raise SpecError(str(file), key, "the table has no rows")
    twice = pc.index(pc.equal(names[1:], names[:-1]), True).as_py()
    if twice >= 0:
        raise SpecError(str(file), key, f"{names[twice].as_py()!r} is there twice")
    return pa.table({name: _whole(table[name]) for name in table.column_names})


def _whole(column: Table) -> Table:
    """The column as one array (an empty one has no chunk at all)."""
    joined = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(joined, pa.ChunkedArray):
        return joined.chunk(0) if joined.num_chunks else pa.array([], joined.type)
    return joined


def _replicas(file: Path, shards: Table, nodes: Table) -> tuple[Ints, Nodes]:
    lists = _whole(shards["replicas"])
    lengths = pc.list_value_length(lists).to_numpy().astype(np.int64)
    flat = _whole(pc.list_flatten(lists))
    number = pc.index_in(flat, value_set=_whole(nodes))
    owner = np.repeat(np.arange(len(lengths)), lengths)
    if number.null_count:
        entry = pc.index(pc.is_null(number), True).as_py()
        shard = shards["shard"][int(owner[entry])].as_py()
        raise SpecError(
            str(file),
            "replicas",
            f"{shard!r} has a replica on {flat[entry].as_py()!r}, which is not in the nodes table",
        )
    pairs = np.sort(owner * len(nodes) + number.to_numpy().astype(np.int64))
    twice = np.flatnonzero(pairs[1:] == pairs[:-1])
    if twice.size:
        shard, node = divmod(int(pairs[twice[0]]), len(nodes))
        raise SpecError(
            str(file), "replicas", f"{shards['shard'][shard].as_py()!r} names {nodes[node].as_py()!r} twice"
        )
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    return offsets, (pairs % len(nodes)).astype(np.int32)


def _integers(file: Path, table: Table, column: str, key: str) -> Ints:
    values = _whole(table[column]).to_numpy().astype(np.int64)
    if (values < 0).any():
        row = int(np.argmax(values < 0))
        raise SpecError(str(file), column, f"{table[key][row].as_py()!r} has {values[row]}, which is below 0")
    return np.asarray(values)


def _speeds(file: Path, nodes: Table) -> Any:
    values = _whole(nodes["speed"]).to_numpy(zero_copy_only=False).astype(np.float64)
    good = np.isfinite(values) & (values > 0)
    if not good.all():
        row = int(np.argmin(good))
        raise SpecError(
            str(file),
            "speed",
            f"{nodes['node'][row].as_py()!r} has {values[row]}, which is not above 0",
            "a node that does not work has slots 0",
        )
    return values


def _power(file: Path, nodes: Table) -> Power | None:
    if _WATTS[0] not in nodes.column_names:
        return None
    idle, busy = (_whole(nodes[name]).to_numpy(zero_copy_only=False).astype(np.float64) for name in _WATTS)
    good = np.isfinite(idle) & np.isfinite(busy) & (idle >= 0) & (busy >= idle)
    if not good.all():
        row = int(np.argmin(good))
        raise SpecError(
            str(file),
            _WATTS[1],
            f"{nodes['node'][row].as_py()!r} has {busy[row]:g} busy and {idle[row]:g} idle, 0 <= idle <= busy",
        )
    return Power(idle_watts=idle, busy_watts=busy)


def _names(column: Table) -> Names:
    """Arrow's own buffers, without a Python string per name."""
    whole = _whole(column).cast(pa.large_string())
    offsets = np.frombuffer(whole.buffers()[1], dtype=np.int64)[whole.offset : whole.offset + len(whole) + 1]
    data = whole.buffers()[2]
    return Names(offsets=offsets, text=np.frombuffer(data, dtype=np.uint8) if data else np.empty(0, np.uint8))
