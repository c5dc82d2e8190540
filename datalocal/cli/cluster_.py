"""`datalocal cluster up|down|status|certificates`."""

from __future__ import annotations

import click

from datalocal.cli.find import cluster_path, home
from datalocal.cli.options import echo_json, json_option


@click.group("cluster", short_help="Bring a cluster up or down, or say what is up.")
def command() -> None:
    """Bring a cluster up to stay, take it down, or say what is up. The nodes' data outlive `down`."""


@command.command("up")
@click.option(
    "-f",
    "--file",
    "--cluster",
    "file",
    type=click.Path(dir_okay=False),
    help="Cluster config. Default: the embedded one.",
)
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, help="Port of the dask scheduler. Default: a free one."
)
@click.option("--dashboard/--no-dashboard", default=True, show_default=True, help="Dask's dashboard, on loopback.")
@json_option
def up(file: str | None, port: int, dashboard: bool, as_json: bool) -> None:
    """Start the cluster, or those of its nodes that are not running."""
    from datalocal.launch import embedded
    from datalocal.spec.cluster import load_cluster

    cluster = load_cluster(cluster_path(file))
    handle = embedded.up(cluster, home(), dashboard=dashboard, port=port)
    if as_json:
        echo_json(embedded.status(home(), cluster.name))
        return
    click.echo(f"{cluster.name} is up: {len(handle.stores)} nodes, scheduler {handle.scheduler}")
    if handle.dashboard:
        click.echo(f"dashboard: {handle.dashboard}")
    click.echo(f"its folders are in {handle.folder}; take it down with: datalocal cluster down {cluster.name}")


@command.command("certificates")
@click.option(
    "-f", "--file", "--cluster", "file", type=click.Path(dir_okay=False), required=True, help="Cluster config."
)
@click.option(
    "--folder", type=click.Path(file_okay=False), help="Write here, instead of where the cluster config says."
)
@click.option("--client-host", "client_hosts", multiple=True, help="A further host from which runs are submitted.")
@click.option("--days", type=click.IntRange(1), default=365, show_default=True, help="How long they are good for.")
@json_option
def certificates(file: str, folder: str | None, client_hosts: tuple[str, ...], days: int, as_json: bool) -> None:
    """Make a certificate authority for the cluster, a certificate for each of its hosts, and its token.

    What is there already stays. Copy each host's files to it; the authority's key belongs on none of them.
    """
    from pathlib import Path

    from datalocal.launch.certificates import make
    from datalocal.spec.cluster import load_cluster

    made = make(load_cluster(Path(file)), folder=Path(folder) if folder else None, days=days, client_hosts=client_hosts)
    if as_json:
        echo_json({"files": {each.name: [str(path) for path in each.files] for each in made}})
        return
    for each in made:
        click.echo(f"{each.name}: {' '.join(str(path) for path in each.files)}")


@command.command("down")
@click.argument("name", required=False)
@click.option("--remove-data", is_flag=True, help="Delete the nodes' folders, and all data sets in them.")
@click.option("--yes", is_flag=True, help="Do not ask before data are deleted.")
@json_option
def down(name: str | None, remove_data: bool, yes: bool, as_json: bool) -> None:
    """Stop what runs of the cluster NAME (default: embedded), also after a crash."""
    from datalocal.launch import embedded

    name = name or "embedded"
    stopped = embedded.down(home(), name)
    if remove_data:
        folder = embedded.folder_of(home(), name)
        if not yes:
            click.confirm(f"delete {folder} and all data sets in it?", abort=True, err=True)
        embedded.remove(home(), name)
    if as_json:
        echo_json({"name": name, "stopped": stopped, "removed": remove_data})
    else:
        click.echo(f"{name} is down ({', '.join(stopped)} stopped)" if stopped else f"{name} was not up")


@command.command("status")
@click.argument("name", required=False)
@json_option
def status(name: str | None, as_json: bool) -> None:
    """Say what is up of the cluster NAME (default: all that are known here)."""
    from rich.console import Console
    from rich.table import Table

    from datalocal.launch import embedded

    found = [embedded.status(home(), each) for each in ([name] if name else embedded.names(home()))]
    if as_json:
        echo_json({"clusters": found})
        return
    if not found:
        click.echo(f"no cluster is known in {home()}; start one: datalocal cluster up")
    for cluster in found:
        if not cluster["up"]:
            click.echo(f"{cluster['name']} is down")
            continue
        table = Table(title=f"{cluster['name']}, scheduler {cluster['scheduler']}", title_justify="left")
        for column in ("node", "role", "rack", "process", "store"):
            table.add_column(column)
        for node in cluster["nodes"]:
            table.add_row(
                node["node"],
                node["role"],
                node["rack"],
                f"pid {node['pid']}" if node["alive"] else "dead",
                node["store"],
            )
        Console().print(table)
        dead = [node["node"] for node in cluster["nodes"] if not node["alive"]]
        if dead:
            click.echo(f"start what is missing ({', '.join(dead)}) with: datalocal cluster up")
