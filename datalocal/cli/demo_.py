"""`datalocal demo`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from datalocal.cli.find import cluster_path, home, job_path
from datalocal.cli.options import cluster_option, echo_json, json_option

if TYPE_CHECKING:
    from datalocal.launch.embedded import ClusterHandle
    from datalocal.launch.existing import Joined
    from datalocal.spec.cluster import Cluster


@click.command("demo", short_help="The whole story on sample photographs.")
@click.option("--images", type=click.IntRange(200), default=2000, show_default=True, help="Sample crops to make.")
@click.option("--keep", is_flag=True, help="Leave the cluster up afterwards, to look around.")
@click.option("--ingest-only", is_flag=True, help="Write the sample photographs into the cluster, and run nothing.")
@cluster_option
@json_option
def command(images: int, keep: bool, ingest_only: bool, cluster_file: str | None, as_json: bool) -> int:
    """Bring the cluster up, write sample photographs into it, and run *resize in place, then train* under four
    policies: near the data, reduced and shipped, and centrally in two ways. Prints the comparison and writes a page.

    Takes less than two minutes on two cores. Nothing is downloaded. The cluster is taken down in the end.
    """
    from datalocal import runner
    from datalocal.cli.submit_ import start_and_follow
    from datalocal.spec.cluster import load_cluster

    where, file = home(), cluster_path(cluster_file)
    cluster = load_cluster(file)
    with _up(cluster, where, keep=keep) as handle:
        report = _fill(handle, images)
        if ingest_only:
            if as_json:
                echo_json(report)
            return 0
        run = runner.prepare(runner.RunRequest(job_file=job_path("resize-then-train"), cluster_file=file, home=where))
        return start_and_follow(run, detach=False, as_json=as_json)


@contextlib.contextmanager
def _up(cluster: Cluster, where: Path, *, keep: bool) -> Iterator[ClusterHandle | Joined]:
    from datalocal.errors import ClusterError
    from datalocal.launch import embedded
    from datalocal.launch.running import running

    if cluster.kind == "existing":
        with running(cluster, where) as joined:
            yield joined
        return
    found = embedded.find(where, cluster.name)
    if found is not None and found.owner is not None and found.owner.alive:
        raise ClusterError(
            f"process {found.owner.pid} uses the cluster {cluster.name!r} for its own run",
            "wait until it is through, or give this demo a home of its own: DATALOCAL_HOME=… datalocal demo",
        )
    mine = not keep and found is None
    click.echo(f"bringing up {len(cluster.nodes)} nodes in {embedded.folder_of(where, cluster.name)}", err=True)
    handle = embedded.up(cluster, where, hold=mine, own=mine)
    try:
        with handle.site.entered():
            yield handle
    finally:
        if mine:
            embedded.down(where, cluster.name)


def _fill(handle: ClusterHandle | Joined, images: int) -> dict[str, int | str]:
    """The sample photographs are in the cluster; says whether they already were."""
    from rich.console import Console
    from rich.progress import Progress

    from datalocal.demo.story import DATASET, fill, is_filled

    console = Console(stderr=True)
    if is_filled(handle, images):
        console.print(f"the data set {DATASET} is there already", highlight=False)
        return {"dataset": DATASET, "images": images, "shards": 0}
    with Progress(console=console, disable=not console.is_terminal) as bars:
        bar = bars.add_task("sample photographs", total=images)
        report = fill(handle, images, lambda done, _: bars.update(bar, completed=done))
    console.print(f"{report.images} sample photographs in {report.shards} shards", highlight=False)
    return {"dataset": DATASET, "images": report.images, "shards": report.shards}
