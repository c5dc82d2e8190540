"""`datalocal simulate`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from datalocal.cli.options import echo_json, json_option

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.progress import Progress

    from datalocal.estimate.arms import Work
    from datalocal.estimate.simulation import Machines
    from datalocal.placement.certificate import Certificate
    from datalocal.placement.frontier import Point
    from datalocal.placement.losses import Losses
    from datalocal.placement.problem import Assigned, Problem
    from datalocal.report.placements import Placed
    from datalocal.spec.preset import Preset

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
    help="And: Parquet with node, rack, slots, speed (shards per second and slot), role; for joules idle_watts, busy_watts.",
)
@click.option(
    "--makespan",
    type=click.FloatRange(0, min_open=True),
    help="Seconds within which all work must be done. Default: the shortest that all nodes together can keep.",
)
@click.option(
    "--makespan-slack",
    type=click.FloatRange(0),
    metavar="SHARE",
    help="How much longer than the shortest makespan optimal-makespan may take, as a share of it, to move fewer bytes. Default: 0.",
)
@click.option(
    "--frontier",
    type=click.IntRange(2),
    metavar="POINTS",
    help="Also show what must move for so many makespans: from the shortest to the one that moves the fewest bytes.",
)
@click.option(
    "--lose",
    multiple=True,
    metavar="NODE",
    help="Also what losing this node costs optimal placements; may be repeated: one after the other.",
)
@click.option("--preset", metavar="NAME", help="Instead: a cluster of cluster-configs/presets, or a file like those.")
@click.option(
    "--policies",
    help="Names, with commas. Default: random,hdfs-greedy,optimal-bytes where storage nodes work, and "
    "central-nas,central-staged where compute nodes do.",
)
@click.option("--epochs", type=click.IntRange(1), default=1, show_default=True, help="How often all shards are read.")
@click.option("--gradient-bytes", type=click.IntRange(1), help="Train in gangs: bytes of one step's gradients.")
@click.option("--batch", type=click.IntRange(1), default=256, show_default=True, help="Samples of a gang per step.")
@click.option(
    "--output-share",
    type=click.FloatRange(0, min_open=True),
    help="Bytes written per byte read, for reduce-then-ship.",
)
@click.option(
    "--cached-share",
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    help="Share of the shards that central-cached keeps on the compute nodes' disks.",
)
@click.option("--link-gbit", type=click.FloatRange(0, min_open=True), help="Per node. Default: 10, or the preset's.")
@click.option("--uplink-gbit", type=click.FloatRange(0, min_open=True), help="Per rack. Default: no limit.")
@click.option("--disk-mbyte", type=click.FloatRange(0, min_open=True), help="MB/s per node. Default: no limit.")
@click.option("--calibrate", metavar="RUN", help="Speeds, disks and links of a synthetic cluster as this run had them.")
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
    makespan_slack: float | None,
    frontier: int | None,
    lose: tuple[str, ...],
    preset: str | None,
    policies: str | None,
    epochs: int,
    gradient_bytes: int | None,
    batch: int,
    output_share: float | None,
    cached_share: float,
    link_gbit: float | None,
    uplink_gbit: float | None,
    disk_mbyte: float | None,
    calibrate: str | None,
    assignment: Path | None,
    as_json: bool,
) -> None:
    """Place the shards of a cluster that need not exist under several policies, and run them in virtual time.

    The cluster is synthetic, a preset, or described by two tables. Shows what share of the shards is local, the best share
    that any policy could reach within the makespan, with its proof, the bytes moved, seconds, and joules where watts are known.
    """
    from rich.console import Console
    from rich.progress import Progress

    from datalocal.estimate.arms import Work
    from datalocal.estimate.central import CENTRAL, usual
    from datalocal.estimate.simulation import Gang
    from datalocal.placement.family import placing
    from datalocal.report import frontiers, losses
    from datalocal.report.placements import render, to_json

    asked = [name.strip() for name in (policies or "").split(",") if name.strip()]
    for name in asked:
        if name not in CENTRAL:
            placing(name)  # a name that does not exist is refused before anything is made
    if (policies is not None and not asked) or len(set(asked)) < len(asked):
        raise click.UsageError("give each policy once: --policies random,optimal-bytes")
    if "reduce-then-ship" in asked and output_share is None:
        raise click.UsageError("reduce-then-ship ships what tasks write: say how much that is with --output-share")
    if makespan_slack is not None and "optimal-makespan" not in asked:
        raise click.UsageError("--makespan-slack tells optimal-makespan what it may take: add it to --policies")
    synthetic = {"shards": shards, "nodes": nodes, "replication": replication, "slots": slots, "layout": layout}
    problem, machines, notes = _cluster(
        preset, calibrate, shards_table, nodes_table, synthetic, seed, (link_gbit, uplink_gbit, disk_mbyte)
    )
    names = asked or list(usual(problem))
    lost = _lost(problem, names, makespan, lose)
    gang = None if gradient_bytes is None else Gang(gradient_bytes=gradient_bytes, batch=batch)
    work = Work(epochs=epochs, gang=gang, output_share=output_share, cached_share=cached_share)
    if gang is not None:
        notes.append(f"Synchronisation is taken to hide behind computing with gamma {gang.gamma:g}, without latency.")
    errors = Console(stderr=True)
    with Progress(console=errors, disable=not errors.is_terminal) as bars:
        bar = bars.add_task("placing", total=len(names))
        limits = makespan, makespan_slack or 0.0
        placed = _placed(problem, names, limits, seed, machines, work, lost, lambda: bars.advance(bar))
        points = _frontier(problem, frontier, bars) if frontier is not None else None
    if assignment is not None:
        _write(assignment, problem, placed)
    if as_json:
        content = to_json(problem, placed, notes)
        if points is not None:
            content["frontier"] = frontiers.frontier_json(problem.shards, points)
        echo_json(content)
        return
    console = Console()
    console.print(render(problem, placed, notes))
    if points is not None:
        console.print()
        console.print(frontiers.render(problem.shards, points))
    for each in placed:
        if each.losses is not None:
            console.print()
            console.print(losses.render(each.answer.policy, each.losses))


def _cluster(
    preset: str | None,
    run: str | None,
    shards_table: Path | None,
    nodes_table: Path | None,
    synthetic: dict[str, int | str | None],
    seed: int,
    wires: tuple[float | None, float | None, float | None],
) -> tuple[Problem, Machines, list[str]]:
    """The problem, its machines, and what was taken for granted."""
    import numpy as np

    from datalocal.estimate.presets import build
    from datalocal.estimate.simulation import Machines

    link_gbit, uplink_gbit, disk_mbyte = wires
    if preset is not None:
        given = [f"--{name}" for name, value in synthetic.items() if value is not None and name != "shards"]
        others = {"shards-table": shards_table, "nodes-table": nodes_table, "calibrate": run}
        given += [f"--{name}" for name, value in others.items() if value is not None]
        if given:
            raise click.UsageError(f"a preset says all of the cluster: leave {given[0]} out")
        problem, machines = build(_preset(preset), shards=_number(synthetic["shards"]), seed=seed)
        return problem, _rewired(machines, problem.nodes, link_gbit, uplink_gbit, disk_mbyte), []
    problem = _problem(shards_table, nodes_table, synthetic, seed)
    machines = Machines(link_bytes_per_second=np.full(problem.nodes, (link_gbit or 10.0) * 1e9 / 8))
    notes: list[str] = []
    if run is not None:
        if shards_table is not None:
            raise click.UsageError("the nodes table says how fast nodes are: leave --calibrate out")
        problem, machines, notes = _calibrated(problem, run)
    machines = _rewired(machines, problem.nodes, link_gbit, uplink_gbit, disk_mbyte)
    if machines.disk_bytes_per_second is None:
        notes.append("No disk is slower than its node's link and cores: give --disk-mbyte where they are.")
    return problem, machines, notes


def _number(value: int | str | None) -> int | None:
    return None if value is None else int(value)


def _preset(name: str) -> Preset:
    import difflib

    from datalocal.cli.find import shipped
    from datalocal.errors import SpecError
    from datalocal.spec.preset import load_preset

    path = Path(name)
    if path.suffix in {".yaml", ".yml"}:
        return load_preset(path)
    known = {file.stem: file for file in sorted((shipped("cluster-configs") / "presets").glob("*.yaml"))}
    if name not in known:
        near = difflib.get_close_matches(name, known, n=2, cutoff=0.5)
        hint = f"did you mean {' or '.join(near)}?" if near else f"presets: {', '.join(known)}"
        raise SpecError(name, "", "there is no such preset", hint)
    return load_preset(known[name])


def _rewired(
    machines: Machines, nodes: int, link_gbit: float | None, uplink_gbit: float | None, disk_mbyte: float | None
) -> Machines:
    """What the command line says of wires and disks goes before anything else."""
    from dataclasses import replace

    import numpy as np

    if link_gbit is not None:
        machines = replace(machines, link_bytes_per_second=np.full(nodes, link_gbit * 1e9 / 8))
    if uplink_gbit is not None:
        machines = replace(machines, uplink_bytes_per_second=uplink_gbit * 1e9 / 8)
    if disk_mbyte is not None:
        machines = replace(machines, disk_bytes_per_second=np.full(nodes, disk_mbyte * 1e6))
    return machines


def _calibrated(problem: Problem, run: str) -> tuple[Problem, Machines, list[str]]:
    """The same shards on nodes like those of a run: one core each, times the layout's speeds."""
    from dataclasses import replace
    from statistics import median

    import numpy as np

    from datalocal.cli.find import find_run
    from datalocal.errors import RequestError
    from datalocal.estimate.calibrate import calibrate
    from datalocal.estimate.simulation import Machines
    from datalocal.spec.cluster import Cluster

    found = find_run(run)
    rates = calibrate(found.manifest, found.all_events(), Cluster.model_validate(found.manifest["cluster"]))
    nodes = rates.nodes.values()
    each = [n.preprocess_core_seconds or n.train_core_seconds for n in nodes]
    link = [n.link_bytes_per_second for n in nodes if n.link_bytes_per_second]
    disk = [n.read_bytes_per_second for n in nodes if n.read_bytes_per_second]
    seconds = median([value for value in each if value] or [0.0])
    if not seconds or not link or not disk:
        raise RequestError(
            f"run {found.id} does not tell the rates of cores, disks and links", "calibrate on one that preprocesses"
        )
    per_shard = seconds * float(problem.shard_rows.mean())
    machines = Machines(
        link_bytes_per_second=np.full(problem.nodes, median(link)),
        disk_bytes_per_second=np.full(problem.nodes, median(disk)),
    )
    told = f"Cores, disks and links are those of run {found.id}: {1 / seconds:.3g} images/s of a core."
    return replace(problem, speed=problem.speed / per_shard), machines, [told, *rates.notes]


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
    limits: tuple[float | None, float],
    seed: int,
    machines: Machines,
    work: Work,
    lost: Sequence[int],
    step: Callable[[], object],
) -> list[Placed]:
    from datalocal.estimate.arms import place, run, slots_of
    from datalocal.placement.family import certified_optimal_bytes
    from datalocal.placement.vet import vet
    from datalocal.report.placements import Placed

    makespan, slack = limits
    certificates: dict[float, Certificate] = {}
    placed = []
    for name in names:
        begin = time.perf_counter()
        here, answer = place(problem, name, makespan, seed, slack=slack)
        seconds = time.perf_counter() - begin
        vet(here, answer)
        limit = answer.makespan_s
        if limit not in certificates:
            certificates[limit] = certified_optimal_bytes(problem, limit)[1]
        ran = run(problem, here, answer, machines, work)
        placed.append(
            Placed(
                answer=answer,
                certificate=certificates[limit],
                bound=ran.bound,
                simulated=ran.simulated,
                bytes=ran.bytes,
                working_slots=slots_of(here, answer.node),
                slot_seconds=ran.slot_seconds,
                plan_seconds=seconds,
                notes=ran.notes,
                losses=_losses(name, here, answer, lost) if lost else None,
            )
        )
        step()
    return placed


def _lost(problem: Problem, names: Sequence[str], makespan: float | None, lose: Sequence[str]) -> list[int]:
    """The nodes that are lost; refused beforehand where no arm could go on without them."""
    from datalocal.estimate.central import CENTRAL, storage_side
    from datalocal.placement.losses import numbers_of, require_without

    if not lose:
        return []
    found = numbers_of(problem, lose)
    if all(name in CENTRAL and name != "reduce-then-ship" for name in names):
        raise click.UsageError(
            "--lose repairs placements on the nodes that hold the shards: add optimal-bytes to --policies"
        )
    here = storage_side(problem)
    require_without(here, found, here.least_makespan() if makespan is None else makespan)
    return found


def _losses(name: str, here: Problem, answer: Assigned, lost: Sequence[int]) -> Losses:
    from datalocal.estimate.central import CENTRAL
    from datalocal.placement.losses import Losses, lose

    if name in CENTRAL and name != "reduce-then-ship":
        return Losses(reason="it works on compute nodes, which hold no shards that a repair could keep local")
    return lose(here, answer, lost, time.perf_counter)


def _frontier(problem: Problem, points: int, bars: Progress) -> tuple[Point, ...]:
    """Of the nodes that work beside the data, as `optimal-bytes` sees them."""
    from datalocal.estimate.central import storage_side
    from datalocal.placement.frontier import frontier

    bar = bars.add_task("frontier", total=points + 1)
    found = frontier(storage_side(problem), points, lambda: bars.advance(bar))
    bars.update(bar, completed=points + 1)  # of points with the same capacities one is enough
    return found


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
