"""`datalocal demo`."""

from __future__ import annotations

import click

from datalocal.cli.find import cluster_path, home, job_path
from datalocal.cli.options import json_option


@click.command("demo", short_help="The whole story on sample photographs.")
@click.option("--images", type=click.IntRange(200), default=2000, show_default=True, help="Sample crops to make.")
@click.option("--keep", is_flag=True, help="Leave the cluster up afterwards, to look around.")
@json_option
def command(images: int, keep: bool, as_json: bool) -> int:
    """Bring an embedded cluster up, write sample photographs into it, and run *resize in place, then train* under four
    policies: near the data, reduced and shipped, and centrally in two ways. Prints the comparison and writes a page.

    Takes less than two minutes on two cores. Nothing is downloaded. The cluster is taken down in the end.
    """
    from rich.console import Console
    from rich.progress import Progress

    from datalocal import runner
    from datalocal.cli.submit_ import start_and_follow
    from datalocal.demo.story import DATASET, fill, is_filled
    from datalocal.errors import ClusterError
    from datalocal.launch import embedded
    from datalocal.spec.cluster import load_cluster

    where = home()
    cluster = load_cluster(cluster_path(None))
    console = Console(stderr=True)
    found = embedded.find(where, cluster.name)
    if found is not None and found.owner is not None and found.owner.alive:
        raise ClusterError(
            f"process {found.owner.pid} uses the cluster {cluster.name!r} for its own run",
            "wait until it is through, or give this demo a home of its own: DATALOCAL_HOME=… datalocal demo",
        )
    was_up = found is not None
    console.print(
        f"bringing up {len(cluster.nodes)} nodes in {embedded.folder_of(where, cluster.name)}", highlight=False
    )
    mine = not keep and not was_up
    handle = embedded.up(cluster, where, hold=mine, own=mine)
    try:
        if is_filled(handle, images):
            console.print(f"the data set {DATASET} is there already", highlight=False)
        else:
            with Progress(console=console, disable=not console.is_terminal) as bars:
                bar = bars.add_task("sample photographs", total=images)
                report = fill(handle, images, lambda done, _: bars.update(bar, completed=done))
            console.print(f"{report.images} sample photographs in {report.shards} shards", highlight=False)
        run = runner.prepare(
            runner.RunRequest(job_file=job_path("resize-then-train"), cluster_file=cluster_path(None), home=where)
        )
        return start_and_follow(run, detach=False, as_json=as_json)
    finally:
        if mine:
            embedded.down(where, cluster.name)
