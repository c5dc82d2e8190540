"""`datalocal ingest SOURCE DATASET`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from datalocal.cli.find import cluster_path, home
from datalocal.cli.options import cluster_option, echo_json, json_option

if TYPE_CHECKING:
    from datalocal.ingest.model import Layout


@click.command("ingest", short_help="Write images into the cluster's store.")
@click.argument("source", type=click.Path(exists=True, path_type=Path))
@click.argument("dataset")
@cluster_option
@click.option(
    "--layout",
    type=click.Choice(["folder", "webdataset", "parquet"]),
    help="What SOURCE is, where it does not tell by itself.",
)
@click.option("--image", metavar="COLUMN", help="Column of the images (Parquet). Default: found by name and type.")
@click.option(
    "--label", metavar="KEY", help="Column (Parquet) or JSON key (tars) of the labels. Default: found by name."
)
@click.option(
    "--shard-bytes", type=click.IntRange(1), help="Largest size of a shard. Default: the cluster's block size."
)
@click.option("--replication", type=click.IntRange(1), help="Replicas of each shard. Default: the cluster's.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the replica placement.")
@click.option("--overwrite", is_flag=True, help="Replace the data set if it is there already.")
@json_option
def command(
    source: Path,
    dataset: str,
    cluster_file: str | None,
    layout: Layout | None,
    image: str | None,
    label: str | None,
    shard_bytes: int | None,
    replication: int | None,
    seed: int,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write the images of SOURCE into the cluster's store as the data set DATASET.

    SOURCE is a folder of images (a class per folder), a folder of WebDataset tars, or Parquet (Hugging Face's layout or a
    plain binary column). Damaged images are counted, listed and left out. A Parquet data set that already lies in the
    store needs no ingest.
    """
    from rich.console import Console
    from rich.progress import Progress

    from datalocal.ingest import ingest
    from datalocal.launch.running import running
    from datalocal.spec.cluster import load_cluster
    from datalocal.storage.counting import ByteCounter
    from datalocal.units import format_bytes, format_count

    cluster = load_cluster(cluster_path(cluster_file))
    console = Console(stderr=True)
    with (
        running(cluster, home()) as handle,
        Progress(console=console, disable=not console.is_terminal) as bars,
    ):
        bar = bars.add_task(f"ingest {dataset}", total=None)
        store = handle.store(ByteCounter())
        try:
            report = ingest(
                source,
                dataset,
                store,
                cluster,
                alive=list(handle.alive),
                replication=replication,
                layout=layout,
                image=image,
                label=label,
                shard_bytes=shard_bytes,
                seed=seed,
                overwrite=overwrite,
                progress=lambda done, total: bars.update(bar, completed=done, total=total or None),
            )
        finally:
            store.close()
    if as_json:
        echo_json(
            {
                "dataset": dataset,
                "images": report.images,
                "bytes": report.bytes,
                "shards": report.shards,
                "damaged": [{"path": lost.path, "problem": lost.problem} for lost in report.damaged],
            }
        )
        return
    click.echo(
        f"{dataset}: {format_count(report.images)} images, {format_bytes(report.bytes)} in {report.shards} shards"
    )
    for lost in report.damaged[:20]:
        click.echo(f"left out: {lost.path}: {lost.problem}", err=True)
    if report.damaged:
        click.echo(f"{len(report.damaged)} damaged images were left out", err=True)
