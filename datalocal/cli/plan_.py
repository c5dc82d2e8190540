"""`datalocal plan JOB`."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from datalocal.cli.find import cluster_path, find_run, home, job_path
from datalocal.cli.options import cluster_option, echo_json, json_option

if TYPE_CHECKING:
    from rich.console import Console

    from datalocal.catalog.model import Catalog
    from datalocal.estimate.bytes import Known
    from datalocal.estimate.cuts import CutTable
    from datalocal.estimate.rates import Rates
    from datalocal.report.planned import Plans
    from datalocal.spec.cluster import Cluster
    from datalocal.spec.job import JobSpec

_NODES = 20
"""Rows of a stage's table: more nodes are summed up."""


@click.command("plan", short_help="Show what every policy would do, before anything runs.")
@click.argument("job")
@cluster_option
@click.option("--policy", "policies", multiple=True, help="Policy to plan; may be repeated. Default: the job's.")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of the job.")
@click.option(
    "--output-share",
    type=click.FloatRange(min=0, min_open=True),
    metavar="SHARE",
    help="Bytes that preprocess writes per byte that it reads, as a report of an earlier run tells.",
)
@click.option("--calibrate", metavar="RUN", help="Fit the rates of disks, links and cores to this run, for seconds.")
@click.option(
    "--assignment",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write policy, stage, shard and node of every task to this Parquet file.",
)
@json_option
def command(
    job: str,
    cluster_file: str | None,
    policies: tuple[str, ...],
    overrides: tuple[str, ...],
    output_share: float | None,
    calibrate: str | None,
    assignment: Path | None,
    as_json: bool,
) -> None:
    """Show, per policy and stage of JOB, which node would work on what, from where it reads, and why where it is not local.

    Then what each policy would move and take, which way of working would move the fewest bytes, and what would turn that.
    `submit` executes the same plan.
    """
    from datalocal.catalog.probe import probe
    from datalocal.launch.running import running
    from datalocal.placement.registry import policy_named
    from datalocal.report.planned import to_json, weigh
    from datalocal.spec.cluster import load_cluster
    from datalocal.spec.job import load_job
    from datalocal.storage.counting import ByteCounter
    from datalocal.tasks.cut_sizes import plan_cut

    path = job_path(job)
    spec = load_job(path, overrides)
    file = cluster_path(cluster_file)
    cluster = load_cluster(file)
    chosen = {name: policy_named(name) for name in policies or spec.policies}
    rates = rates_of(cluster, str(file), calibrate)
    with running(cluster, home(), share=True) as handle:
        store = handle.store(ByteCounter())
        try:
            catalog = probe(store, cluster, spec.dataset, spec.columns, list(handle.alive))
            spec, cuts = plan_cut(spec, path.resolve().parent, catalog, store)
            if cuts is not None:
                output_share = output_share or cuts.share_of_raw(cuts.chosen)
            known = _known(spec, path.resolve().parent, catalog, store, output_share, rates)
        finally:
            store.close()
        living = cluster.model_copy(update={"nodes": tuple(n for n in cluster.nodes if n.name in handle.alive)})
    plans = weigh(chosen, spec, catalog, living, known=known, rates=rates, clock=time.perf_counter)
    content = to_json(plans, spec, catalog, cluster)
    if assignment is not None:
        _write(assignment, plans)
    if as_json:
        echo_json(content | ({"pipeline": cuts.to_json()} if cuts is not None else {}))
        return
    _print(content, cuts)
    for name, reason in plans.refused.items():
        click.echo(f"{name} cannot be planned: {reason}", err=True)


def rates_of(cluster: Cluster, file: str, run: str | None) -> Rates | None:
    """The rates that a run measured, else those of the cluster file, else none."""
    from datalocal.estimate.calibrate import calibrate
    from datalocal.estimate.rates import declared

    if run is not None:
        found = find_run(run)
        return calibrate(found.manifest, found.all_events(), cluster)
    machine = (os.cpu_count() or 1) if cluster.kind != "existing" else None
    return declared(cluster, source=file, machine_cores=machine)


def _known(
    spec: JobSpec, folder: Path, catalog: Catalog, store: Any, output_share: float | None, rates: Rates | None
) -> Known:
    from datalocal.estimate.bytes import Known
    from datalocal.tasks.select import rows_that_train
    from datalocal.tasks.train.size import checkpoint_bytes, gradient_bytes

    if output_share is None and rates is not None:
        output_share = rates.output_share
    if spec.train is None:
        return Known(output_share=output_share, training={})
    classes = len(catalog.labels)
    return Known(
        gradient_bytes=gradient_bytes(spec.train, folder, classes),
        checkpoint_bytes=checkpoint_bytes(spec.train, folder, classes),
        output_share=output_share,
        training=rows_that_train(spec, catalog, store),
    )


def _write(file: Path, plans: Plans) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    from datalocal.errors import DatalocalError
    from datalocal.report.planned import assignment_columns

    try:
        pq.write_table(pa.table(assignment_columns([arm.plan for arm in plans.arms])), file)
    except OSError as error:
        raise DatalocalError(f"{file} cannot be written: {error.strerror or error}") from None


def _print(content: dict[str, Any], cuts: CutTable | None) -> None:
    from rich.console import Console

    from datalocal.report.cuts import render

    console = Console()
    if cuts is not None:
        console.print(render(cuts))
    for arm in content["arms"]:
        for stage in arm["stages"]:
            _print_stage(console, arm["policy"], stage)
        _print_estimate(console, arm)
    _print_arms(console, content["arms"])
    for entry in content["proofs"]:
        console.print(f"What keeps {entry['stage']} from being all local", style="bold")
        for sentence in entry["sentences"]:
            console.print(f"  {sentence}", highlight=False, markup=False)
        console.print()
    verdict = content["verdict"]
    console.print(verdict["sentence"], style="bold", highlight=False, markup=False)
    for sentence in verdict["because"]:
        console.print(f"  {sentence}", highlight=False, markup=False)


def _print_stage(console: Console, policy: str, stage: dict[str, Any]) -> None:
    from rich.table import Table

    from datalocal.units import format_bytes, format_count

    what = {
        "dataset": "the data set",
        "staged": "the staged copies",
        "cached": "the kept copies, and the data set for the rest",
        "output": "what preprocess writes, in sizes of its input",
    }
    table = Table(
        title=f"{policy}: {stage['name']} reads {what[stage['input']]}", title_justify="left", title_style="bold"
    )
    for column in ("node", "shards", "rows", "from its own disk", "from its rack", "from another rack"):
        table.add_column(column, justify="left" if column == "node" else "right")
    for node in stage["nodes"][: _NODES if len(stage["nodes"]) > _NODES + 1 else None]:
        sizes = [format_bytes(node["bytes"][tier]) for tier in ("node_local", "rack_local", "off_rack")]
        table.add_row(node["node"], format_count(node["shards"]), format_count(node["rows"]), *sizes)
    console.print(table)
    if len(stage["nodes"]) > _NODES + 1:
        shards = [node["shards"] for node in stage["nodes"]]
        console.print(
            f"  and {format_count(len(shards) - _NODES)} more nodes: {format_count(min(shards))} to "
            f"{format_count(max(shards))} shards on each of all {format_count(len(shards))}; --json has every one",
            highlight=False,
            markup=False,
        )
    for entry in stage["not_local"]:
        console.print(f"  {entry['shards']} shards not local: {entry['reason']}", highlight=False, markup=False)


def _print_arms(console: Console, arms: list[dict[str, Any]]) -> None:
    from rich.table import Table

    from datalocal.units import format_bytes, format_count, format_joules, format_seconds, format_share

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("policy", no_wrap=True)
    for title in ("local", "bound", "gap", "off node", "off rack", "time", "joules"):
        table.add_column(title, justify="right")
    for arm in arms:
        summary = arm["estimate"]["summary"]
        least = "at least " if summary["unknown"] else ""
        known = [row["joules"] for row in arm["joules"]]
        joules = None if None in known else sum(known)
        table.add_row(
            arm["policy"],
            format_share(arm["local_share"]),
            format_share(arm["local_share_bound"]),
            format_count(arm["gap"]),
            least + format_bytes(summary["bytes_off_node"]),
            least + format_bytes(summary["bytes_off_rack"]),
            "unknown" if arm["seconds"] is None else format_seconds(arm["seconds"]),
            format_joules(joules),
        )
    console.print(table)
    console.print()


def _print_estimate(console: Console, arm: dict[str, Any]) -> None:
    from datalocal.report.labels import in_words
    from datalocal.units import format_bytes, format_share

    policy, summary = arm["policy"], arm["estimate"]["summary"]
    classes = ", ".join(f"{class_} {format_bytes(size)}" for class_, size in summary["by_class"].items())
    least = "at least " if summary["unknown"] else ""
    text = f"{policy}: {least}{format_bytes(summary['bytes_off_node'])} would leave a node"
    text += f" ({classes})" if classes else ""
    text += f"; {format_share(summary['local_byte_share'])} of the known input from own disks"
    console.print(text, highlight=False, markup=False)
    for reason in summary["unknown"]:
        console.print(f"  not known before it runs: {reason}", highlight=False, markup=False)
    if arm["label_distance"] is not None:
        console.print(f"  {in_words(arm['label_distance'])}", highlight=False, markup=False)
    console.print()
