"""`datalocal simulate`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from datalocal.cli.options import echo_json, json_option

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from datalocal.placement.problem import Problem
    from datalocal.report.placements import Placed

_SHARDS, _NODES = 10_000, 100


@click.command("simulate", short_help="Compare placements on a cluster that need not exist, with their bound.")
@click.option("--shards", type=click.IntRange(1), help=f"Shards of a synthetic cluster. Default: {_SHARDS}.")
@click.option("--nodes", type=click.IntRange(1), help=f"Its storage nodes. Default: {_NODES}.")
@click.option("--replication", type=click.IntRange(1), help="Replicas of each shard. Default: 3.")
@click.option("--slots", type=click.IntRange(1), help="Tasks at a time on each node. Default: 1.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of cluster and random policies.")
@click.option(
    "--layout",
    type=click.Choice(["hdfs", "three-speeds", "ring"]),
    help="hdfs: HDFS's default rule; three-speeds: with GPUs of speeds 1, 2 and 4; ring: consistent hashing. Default: hdfs.",
)
@click.option(
    "--shards-table",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Instead: Parquet with shard, bytes, rows, replicas (list of node names).",
)
@click.option(
    "--nodes-table",
    type=click.Path(dir_okay=False, path_type=Path),
    help="And: Parquet with node, rack, slots, speed (shards per second and slot), role.",
)
@click.option(
    "--makespan",
    type=click.FloatRange(0, min_open=True),
    help="Seconds within which all work must be done. Default: the shortest that all nodes together can keep.",
)
@click.option("--policies", default="random,hdfs-greedy,optimal-bytes", show_default=True, help="Names, with commas.")
@click.option("--link-gbit", type=click.FloatRange(0, min_open=True), default=10.0, show_default=True, help="Per node.")
@click.option("--uplink-gbit", type=click.FloatRange(0, min_open=True), help="Per rack. Default: no limit.")
@click.option(
    "--assignment",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write policy, shard and node of every task to this Parquet file.",
)
@json_option
def command(
    shards: int | None,
    nodes: int | None,
    replication: int | None,
    slots: int | None,
    seed: int,
    layout: str | None,
    shards_table: Path | None,
    nodes_table: Path | None,
    makespan: float | None,
    policies: str,
    link_gbit: float,
    uplink_gbit: float | None,
    assignment: Path | None,
    as_json: bool,
) -> None:
    """Place the shards of a synthetic cluster, or of one described by two tables, under several policies.

    Shows what share of the shards is local, the best share that any policy could reach within the makespan, with its proof, the
    bytes moved, and the time it takes at least.
    """
    from rich.console import Console
    from rich.progress import Progress

    from datalocal.placement.family import placing
    from datalocal.report.placements import render, to_json

    names = [name.strip() for name in policies.split(",") if name.strip()]
    for name in names:
        placing(name)  # a name that does not exist is refused before anything is made
    if not names or len(set(names)) < len(names):
        raise click.UsageError("give each policy once: --policies random,optimal-bytes")
    synthetic = {"shards": shards, "nodes": nodes, "replication": replication, "slots": slots, "layout": layout}
    problem = _problem(shards_table, nodes_table, synthetic, seed)
    errors = Console(stderr=True)
    with Progress(console=errors, disable=not errors.is_terminal) as bars:
        bar = bars.add_task("placing", total=len(names) + 1)
        placed = _placed(problem, names, makespan, seed, link_gbit, uplink_gbit, lambda: bars.advance(bar))
    if assignment is not None:
        _write(assignment, problem, placed)
    if as_json:
        echo_json(to_json(problem, placed))
    else:
        Console().print(render(problem, placed))


def _problem(
    shards_table: Path | None, nodes_table: Path | None, synthetic: dict[str, int | str | None], seed: int
) -> Problem:
    if (shards_table is None) != (nodes_table is None):
        raise click.UsageError("--shards-table and --nodes-table belong together")
    if shards_table is not None and nodes_table is not None:
        if given := [name for name, value in synthetic.items() if value is not None]:
            raise click.UsageError(f"--{given[0]} describes a synthetic cluster, and two tables were given")
        from datalocal.catalog.tables import read_tables

        return read_tables(shards_table, nodes_table)
    from datalocal.placement import synthetic as made

    layouts = {"hdfs": made.hdfs, "three-speeds": made.three_speeds, "ring": made.ring}
    nodes, replication = int(synthetic["nodes"] or _NODES), int(synthetic["replication"] or 3)
    if replication > nodes:
        raise click.UsageError(f"{replication} replicas do not fit on {nodes} nodes")
    return layouts[str(synthetic["layout"] or "hdfs")](
        int(synthetic["shards"] or _SHARDS),
        nodes,
        replication=replication,
        slots=int(synthetic["slots"] or 1),
        seed=seed,
    )


def _placed(
    problem: Problem,
    names: Sequence[str],
    makespan: float | None,
    seed: int,
    link_gbit: float,
    uplink_gbit: float | None,
    step: Callable[[], object],
) -> list[Placed]:
    from datalocal.estimate.bottleneck import bottleneck
    from datalocal.placement.family import certified_optimal_bytes, placing
    from datalocal.placement.vet import vet
    from datalocal.report.placements import Placed

    limit = problem.least_makespan() if makespan is None else makespan
    _, certificate = certified_optimal_bytes(problem, limit)
    step()
    placed = []
    for name in names:
        begin = time.perf_counter()
        answer = placing(name)(problem, limit, seed)
        seconds = time.perf_counter() - begin
        vet(problem, answer)
        bound = bottleneck(
            problem,
            answer,
            link_bytes_per_second=link_gbit * 1e9 / 8,
            uplink_bytes_per_second=None if uplink_gbit is None else uplink_gbit * 1e9 / 8,
        )
        placed.append(Placed(answer=answer, certificate=certificate, bound=bound, plan_seconds=seconds))
        step()
    return placed


def _write(file: Path, problem: Problem, placed: Sequence[Placed]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from datalocal.errors import DatalocalError

    shards = [problem.shard_names[number] for number in range(problem.shards)]
    names = pa.array([problem.node_names[number] for number in range(problem.nodes)])
    tables = [
        pa.table(
            {
                "policy": pa.array([each.answer.policy] * problem.shards).dictionary_encode(),
                "shard": shards,
                "node": names.take(pa.array(each.answer.node)),
            }
        )
        for each in placed
    ]
    try:
        pq.write_table(pa.concat_tables(tables, promote_options="permissive").unify_dictionaries(), file)
    except OSError as error:
        raise DatalocalError(f"{file} cannot be written: {error.strerror or error}") from None
