"""Two Parquet tables become a problem, whatever the order of their rows; bad ones are refused by file and column."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datalocal.catalog.tables import read_tables
from datalocal.errors import SpecError
from datalocal.placement import family
from datalocal.placement.problem import ROLES, Problem

SHARDS: dict[str, Any] = {
    "shard": ["b", "a", "d", "c"],
    "bytes": [20, 10, 40, 30],
    "rows": [2, 1, 4, 3],
    "replicas": [["n2", "n1"], ["n3"], [], ["n1", "n3"]],
}
NODES: dict[str, Any] = {
    "node": ["n3", "n1", "n2"],
    "rack": ["west", "east", "west"],
    "slots": [1, 2, 0],
    "speed": [0.5, 1.0, 2.0],
    "role": ["storage", "storage", "compute"],
}


def write(folder: Path, shards: dict[str, Any], nodes: dict[str, Any]) -> tuple[Path, Path]:
    paths = folder / "shards.parquet", folder / "nodes.parquet"
    for path, content in zip(paths, (shards, nodes), strict=True):
        pq.write_table(pa.table(content), path)
    return paths


def test_shards_and_nodes_are_numbered_by_name(tmp_path: Path) -> None:
    problem = read_tables(*write(tmp_path, SHARDS, NODES))
    assert [problem.shard_names[i] for i in range(4)] == ["a", "b", "c", "d"]
    assert [problem.node_names[i] for i in range(3)] == ["n1", "n2", "n3"]
    assert [problem.rack_names[i] for i in problem.rack] == ["east", "west", "west"]
    assert problem.shard_bytes.tolist() == [10, 20, 30, 40]
    assert problem.shard_rows.tolist() == [1, 2, 3, 4]
    assert problem.replica_offsets.tolist() == [0, 1, 3, 5, 5]
    assert problem.replica_nodes.tolist() == [2, 0, 1, 0, 2]
    assert problem.slots.tolist() == [2, 0, 1]
    assert [ROLES[role] for role in problem.role] == ["storage", "compute", "storage"]
    assert problem.capacity(3.0).tolist() == [4, 0, 1]


def test_watts_are_read_where_both_are_given_and_checked(tmp_path: Path) -> None:
    assert read_tables(*write(tmp_path, SHARDS, NODES)).power is None
    watts = {"idle_watts": [30, 10, 20], "busy_watts": [300.0, 100.0, 20.0]}
    problem = read_tables(*write(tmp_path, SHARDS, NODES | watts))
    assert problem.power is not None
    order = np.argsort(NODES["node"])
    assert problem.power.idle_watts.tolist() == np.array(watts["idle_watts"])[order].tolist()
    assert family.placing("energy")(problem, None, 0).policy == "energy"
    for bad in ({"idle_watts": [1, 1, 1]}, watts | {"busy_watts": [300.0, 9.0, 20.0]}):
        with pytest.raises(SpecError, match="busy_watts"):
            read_tables(*write(tmp_path, SHARDS, NODES | bad))


def test_the_order_of_rows_changes_nothing(tmp_path: Path) -> None:
    draw = np.random.default_rng(3)
    names = [f"node{i}" for i in range(12)]
    shards: dict[str, Any] = {
        "shard": [f"s{i:04d}" for i in range(500)],
        "bytes": draw.integers(1, 10**9, 500).tolist(),
        "rows": [1] * 500,
        "replicas": [[names[int(k)] for k in draw.permutation(12)[:3]] for _ in range(500)],
    }
    nodes: dict[str, Any] = {
        "node": names, "rack": [f"r{i % 3}" for i in range(12)], "slots": [i % 3 for i in range(12)],
        "speed": [1.0] * 12, "role": ["storage"] * 12,
    }  # fmt: skip

    def mixed(table: dict[str, Any]) -> dict[str, Any]:
        order = draw.permutation(len(next(iter(table.values()))))
        return {name: [values[int(k)] for k in order] for name, values in table.items()}

    def answers(problem: Problem) -> list[list[int]]:
        makespan_s = problem.least_makespan()
        return [
            family.placing(name)(problem, makespan_s, 7).node.tolist()
            for name in family.FAMILY
            if name not in ("quincy", "energy")
        ]

    first = answers(read_tables(*write(tmp_path, shards, nodes)))
    assert first == answers(read_tables(*write(tmp_path, mixed(shards), mixed(nodes))))


def test_other_string_types_are_read_as_well(tmp_path: Path) -> None:
    shards = pa.table(SHARDS).cast(
        pa.schema(
            [
                ("shard", pa.large_string()),
                ("bytes", pa.int32()),
                ("rows", pa.uint16()),
                ("replicas", pa.large_list(pa.large_string())),
            ]
        )
    )
    nodes = pa.table(NODES)
    nodes = nodes.set_column(1, "rack", nodes["rack"].dictionary_encode())
    for path, table in ((tmp_path / "s.parquet", shards), (tmp_path / "n.parquet", nodes)):
        pq.write_table(table, path)
    problem = read_tables(tmp_path / "s.parquet", tmp_path / "n.parquet")
    assert problem.replica_nodes.tolist() == [2, 0, 1, 0, 2]
    assert problem.shard_names[3] == "d"


BAD: list[tuple[str, str, list[Any] | None, str]] = [
    ("shards", "bytes", None, "missing"),
    ("shards", "bytes", [1, 2, 3, -4], "below 0"),
    ("shards", "bytes", ["1", "2", "3", "4"], "is string"),
    ("shards", "rows", [1, 2, 3, None], "row 3 has no value"),
    ("shards", "shard", ["a", "b", "a", "c"], "'a' is there twice"),
    ("shards", "replicas", [["n1"], ["n9"], ["n1"], ["n1"]], "'n9', which is not in the nodes table"),
    ("shards", "replicas", [["n1", "n1"], ["n2"], ["n1"], ["n1"]], "'n1' twice"),
    ("shards", "replicas", ["n1", "n1", "n1", "n1"], "list of strings"),
    ("nodes", "role", ["storage", "storage", "gpu"], "'gpu' is no role"),
    ("nodes", "speed", [1.0, 0.0, 1.0], "not above 0"),
    ("nodes", "speed", [1.0, float("nan"), 1.0], "not above 0"),
    ("nodes", "slots", [1.5, 1.0, 1.0], "is double"),
    ("nodes", "node", ["n1", "n1", "n2"], "'n1' is there twice"),
    ("nodes", "rack", [1, 2, 3], "is int64"),
]


@pytest.mark.parametrize(("table", "column", "values", "words"), BAD)
def test_bad_tables_are_refused_by_file_and_column(
    tmp_path: Path, table: str, column: str, values: list[Any] | None, words: str
) -> None:
    tables = {"shards": dict(SHARDS), "nodes": dict(NODES)}
    if values is None:
        del tables[table][column]
    else:
        tables[table][column] = values
    with pytest.raises(SpecError) as caught:
        read_tables(*write(tmp_path, tables["shards"], tables["nodes"]))
    assert caught.value.file.endswith(f"{table}.parquet")
    assert caught.value.key == column
    assert words in str(caught.value)


def test_files_that_are_not_parquet_or_have_no_rows_are_refused(tmp_path: Path) -> None:
    shards, nodes = write(tmp_path, SHARDS, NODES)
    nodes.write_text("node,rack\n")
    with pytest.raises(SpecError, match="cannot be read as Parquet"):
        read_tables(shards, nodes)
    with pytest.raises(SpecError, match="cannot be read as Parquet"):
        read_tables(shards, tmp_path / "nowhere.parquet")
    pq.write_table(pa.table(NODES).slice(0, 0), nodes)
    with pytest.raises(SpecError, match="no rows"):
        read_tables(shards, nodes)
