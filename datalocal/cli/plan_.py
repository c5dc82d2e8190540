"""`datalocal plan JOB`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from datalocal.cli.find import cluster_path, home, job_path
from datalocal.cli.options import cluster_option, echo_json, json_option

if TYPE_CHECKING:
    from rich.console import Console

    from datalocal.catalog.model import Catalog
    from datalocal.estimate.bytes import Estimate
    from datalocal.estimate.crossover import Crossover
    from datalocal.estimate.cuts import CutTable
    from datalocal.placement.model import Plan
    from datalocal.spec.cluster import Cluster


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
@json_option
def command(
    job: str,
    cluster_file: str | None,
    policies: tuple[str, ...],
    overrides: tuple[str, ...],
    output_share: float | None,
    as_json: bool,
) -> None:
    """Show, per policy and stage of JOB, which node would work on what, from where it reads, and why where it is not local.

    Then which way of working would move the fewest bytes, and what would turn that. `submit` executes the same plan.
    """
    from datalocal.catalog.probe import probe
    from datalocal.errors import PlacementError
    from datalocal.estimate.bytes import estimate
    from datalocal.estimate.crossover import crossovers
    from datalocal.launch.running import running
    from datalocal.placement.check import check
    from datalocal.placement.registry import policy_named
    from datalocal.report.advice import advice
    from datalocal.report.verdict import choice_of
    from datalocal.spec.cluster import load_cluster
    from datalocal.spec.job import load_job
    from datalocal.storage.counting import ByteCounter
    from datalocal.tasks.cut_sizes import plan_cut
    from datalocal.tasks.train.size import gradient_bytes

    path = job_path(job)
    spec = load_job(path, overrides)
    cluster = load_cluster(cluster_path(cluster_file))
    chosen = [(name, policy_named(name)) for name in policies or spec.policies]
    with running(cluster, home(), share=True) as handle:
        store = handle.store(ByteCounter())
        try:
            catalog = probe(store, cluster, spec.dataset, spec.columns, list(handle.alive))
            spec, cuts = plan_cut(spec, path.resolve().parent, catalog, store)
            if cuts is not None:
                output_share = output_share or cuts.share_of_raw(cuts.chosen)
        finally:
            store.close()
        living = cluster.model_copy(update={"nodes": tuple(n for n in cluster.nodes if n.name in handle.alive)})
    gradients = gradient_bytes(spec.train, path.resolve().parent, len(catalog.labels)) if spec.train else None
    arms: list[dict[str, Any]] = []
    estimates: list[Estimate] = []
    turning: tuple[Crossover, ...] = ()
    refused: dict[str, str] = {}
    for name, policy in chosen:
        try:
            plan = policy(spec, catalog, living)
            check(plan, spec, catalog, living)
        except PlacementError as error:
            refused[name] = str(error)
        else:
            modelled = estimate(plan, spec, catalog, cluster, gradient_bytes=gradients, output_share=output_share)
            arm = summarise(plan, catalog, cluster) | {"estimate": modelled.to_json()}
            if choice_of(name) == "local":
                found = crossovers(plan, spec, catalog, modelled, gradients)
                arm["crossovers"] = [each.to_json() for each in found]
                turning = turning or found
            arms.append(arm)
            estimates.append(modelled)
    verdict = advice(estimates, turning)
    if as_json:
        echo_json(
            {"job": spec.name, "dataset": spec.dataset, "arms": arms, "refused": refused, "verdict": verdict}
            | ({"pipeline": cuts.to_json()} if cuts is not None else {})
        )
        return
    _print(arms, verdict, cuts)
    for name, reason in refused.items():
        click.echo(f"{name} cannot be planned: {reason}", err=True)


def summarise(plan: Plan, catalog: Catalog, cluster: Cluster) -> dict[str, Any]:
    """A plan in figures: per stage and node what is read at which distance, and why where it is not local."""
    from datalocal.placement.model import Tier

    stages = []
    for stage in plan.stages:
        nodes: dict[str, dict[str, Any]] = {}
        reasons: dict[str, int] = {}
        for assignment in stage.assignments:
            number = catalog.index(assignment.shard)
            node = nodes.setdefault(
                assignment.node,
                {"node": assignment.node, "shards": 0, "rows": 0, "bytes": {tier.name: 0 for tier in Tier}},
            )
            node["shards"] += 1
            node["rows"] += int(catalog.shard_rows[number])
            tier = Tier.between(cluster, assignment.sources[0], assignment.node)
            node["bytes"][tier.name] += int(catalog.shard_bytes[number])
            if assignment.reason:
                reasons[assignment.reason] = reasons.get(assignment.reason, 0) + 1
        stages.append(
            {
                "name": stage.name,
                "kind": stage.kind,
                "input": stage.input,
                "nodes": [nodes[name] for name in sorted(nodes)],
                "not_local": [{"reason": reason, "shards": count} for reason, count in sorted(reasons.items())],
            }
        )
    return {"policy": plan.policy, "stages": stages}


def _print(arms: list[dict[str, Any]], verdict: dict[str, Any], cuts: CutTable | None) -> None:
    from rich.console import Console
    from rich.table import Table

    from datalocal.report.cuts import render
    from datalocal.units import format_bytes, format_count

    console = Console()
    if cuts is not None:
        console.print(render(cuts))
    for arm in arms:
        for stage in arm["stages"]:
            what = {
                "dataset": "the data set",
                "staged": "the staged copies",
                "output": "what preprocess writes, in sizes of its input",
            }
            table = Table(
                title=f"{arm['policy']}: {stage['name']} reads {what[stage['input']]}",
                title_justify="left",
                title_style="bold",
            )
            for column in ("node", "shards", "rows", "from its own disk", "from its rack", "from another rack"):
                table.add_column(column, justify="left" if column == "node" else "right")
            for node in stage["nodes"]:
                sizes = [format_bytes(node["bytes"][tier]) for tier in ("NODE_LOCAL", "RACK_LOCAL", "OFF_RACK")]
                table.add_row(node["node"], format_count(node["shards"]), format_count(node["rows"]), *sizes)
            console.print(table)
            for entry in stage["not_local"]:
                console.print(f"  {entry['shards']} shards not local: {entry['reason']}", highlight=False, markup=False)
        _print_estimate(console, arm["policy"], arm["estimate"]["summary"])
    console.print(verdict["sentence"], style="bold", highlight=False, markup=False)
    for sentence in verdict["because"]:
        console.print(f"  {sentence}", highlight=False, markup=False)


def _print_estimate(console: Console, policy: str, summary: dict[str, Any]) -> None:
    from datalocal.units import format_bytes, format_share

    classes = ", ".join(f"{class_} {format_bytes(size)}" for class_, size in summary["by_class"].items())
    text = f"{policy}: at least {format_bytes(summary['bytes_off_node'])} would leave a node"
    text += f" ({classes})" if classes else ""
    text += f"; {format_share(summary['local_byte_share'])} of the known input from own disks"
    console.print(text, highlight=False, markup=False)
    for reason in summary["unknown"]:
        console.print(f"  not known before it runs: {reason}", highlight=False, markup=False)
    console.print()
