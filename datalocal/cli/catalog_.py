"""`datalocal catalog DATASET`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from datalocal.cli.find import cluster_path, home
from datalocal.cli.options import cluster_option, echo_json, json_option

if TYPE_CHECKING:
    from datalocal.catalog.model import Catalog
    from datalocal.spec.cluster import Cluster


@click.command("catalog", short_help="Show a data set: shards, replicas, labels.")
@click.argument("dataset", required=False)
@cluster_option
@click.option("--image", default="image", show_default=True, help="Image column.")
@click.option("--label", default="label", show_default=True, help="Label column; empty for none.")
@json_option
def command(dataset: str | None, cluster_file: str | None, image: str, label: str, as_json: bool) -> None:
    """Show the data set DATASET as it lies on the nodes; without DATASET, name the data sets there are."""
    from datalocal.catalog.probe import probe
    from datalocal.launch.running import running
    from datalocal.spec.cluster import load_cluster
    from datalocal.spec.job import Columns
    from datalocal.storage.counting import ByteCounter

    cluster = load_cluster(cluster_path(cluster_file))
    with running(cluster, home(), share=True) as handle:
        store = handle.store(ByteCounter())
        try:
            if dataset is None:
                names = sorted({name for node in handle.alive for name in store.datasets(node)})
                if as_json:
                    echo_json({"datasets": names})
                else:
                    click.echo(
                        "\n".join(names) or "no data set is there yet; write one: datalocal ingest SOURCE DATASET"
                    )
                return
            alive = list(handle.alive)
            catalog = probe(store, cluster, dataset, Columns(image=image, label=label or None), alive)
            summary = summarise(catalog, cluster, set(alive))
        finally:
            store.close()
    if as_json:
        echo_json(summary)
    else:
        _print(summary)


def summarise(catalog: Catalog, cluster: Cluster, alive: set[str]) -> dict[str, Any]:
    """The catalog in figures a person asks for."""
    import numpy as np

    workable = np.zeros(len(catalog), dtype=bool)
    nodes: dict[str, dict[str, Any]] = {
        node.name: {
            "node": node.name,
            "rack": node.rack,
            "alive": node.name in alive,
            "shards": 0,
            "bytes": 0,
            "labels": {},
        }
        for node in cluster.nodes
    }
    replicas: dict[int, int] = {}
    for shard in range(len(catalog)):
        holders = catalog.replicas(shard)
        replicas[len(holders)] = replicas.get(len(holders), 0) + 1
        for name in holders:
            workable[shard] |= name in alive
            node = nodes[name]
            node["shards"] += 1
            node["bytes"] += int(catalog.shard_bytes[shard])
            if catalog.label_counts is not None:
                for label, count in zip(catalog.labels, catalog.label_counts[shard].tolist(), strict=True):
                    node["labels"][label] = node["labels"].get(label, 0) + count
    total = catalog.total_bytes
    return {
        "dataset": catalog.dataset,
        "shards": len(catalog),
        "rows": catalog.total_rows,
        "bytes": total,
        "replicas": {str(count): shards for count, shards in sorted(replicas.items())},
        "labels": list(catalog.labels),
        "nodes": list(nodes.values()),
        "workable_share": float(catalog.shard_bytes[workable].sum() / total) if total else 0.0,
        "warnings": list(catalog.warnings),
    }


def _print(summary: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    from datalocal.units import format_bytes, format_count, format_share

    console = Console()
    replicas = ", ".join(f"{format_count(shards)} with {count}" for count, shards in summary["replicas"].items())
    console.print(
        f"{summary['dataset']}: {format_count(summary['shards'])} shards, {format_count(summary['rows'])} rows, "
        f"{format_bytes(summary['bytes'])}; shards by replicas: {replicas}",
        highlight=False,
    )
    console.print(
        f"{format_share(summary['workable_share'])} of the bytes have a replica on a node that can work",
        highlight=False,
    )
    table = Table()
    for column, justify in (
        ("node", "left"),
        ("rack", "left"),
        ("shards", "right"),
        ("bytes", "right"),
        ("labels", "left"),
    ):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]  # rich wants a Literal
    for node in summary["nodes"]:
        labels = sorted(node["labels"].items(), key=lambda item: -item[1])
        text = ", ".join(f"{label} {count}" for label, count in labels[:6]) + (", …" if len(labels) > 6 else "")
        name = node["node"] if node["alive"] else f"{node['node']} (down)"
        table.add_row(name, node["rack"], format_count(node["shards"]), format_bytes(node["bytes"]), text)
    console.print(table)
    for warning in summary["warnings"]:
        click.echo(f"warning: {warning}", err=True)
