"""`datalocal worker`."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from datalocal.cli.options import ready_file_option, required_cluster_option

if TYPE_CHECKING:
    from datalocal.spec.cluster import Cluster, Node

_GUARD = "DATALOCAL_ENVIRONMENT"


@click.command("worker", short_help="Run one node of an existing cluster, on its host.")
@required_cluster_option
@click.option("--node", "name", help="Which node of it this is. Default: the one that has this host's name.")
@click.option("--folder", type=click.Path(file_okay=False), help="The node's folder, instead of the file's.")
@click.option("--cores", type=click.IntRange(1), help="Threads of a task, instead of the file's.")
@click.option(
    "--memory", "memory_bytes", type=click.IntRange(1), help="Bytes its tasks may use, instead of the file's."
)
@click.option("--disk-floor", type=click.IntRange(0), help="Bytes that writes leave free, instead of the file's.")
@click.option("--nice", type=click.IntRange(0, 19), help="Niceness of tasks, instead of the file's.")
@click.option("--ionice", type=click.Choice(["normal", "low", "idle"]), help="Disk priority, instead of the file's.")
@click.option(
    "--wait",
    "wait_seconds",
    type=click.FloatRange(0),
    default=120.0,
    show_default=True,
    help="Seconds to wait for the head.",
)
@click.option(
    "--enrol",
    "enrol_port",
    type=click.IntRange(1, 65535),
    help="Port at which the head hands out certificates; asked when there is none here yet.",
)
@ready_file_option("the node is in the cluster")
def command(
    cluster_file: str,
    name: str | None,
    folder: str | None,
    cores: int | None,
    memory_bytes: int | None,
    disk_floor: int | None,
    nice: int | None,
    ionice: str | None,
    wait_seconds: float,
    enrol_port: int | None,
    ready_file: Path | None,
) -> int:
    """Join the cluster in FILE as one of its nodes, and serve until SIGTERM.

    For a systemd unit, Slurm, SSH or a container to start. Exits with 3, and the reason, when the head refuses it or goes away.
    """
    from datalocal.spec.cluster import load_cluster

    cluster = load_cluster(Path(cluster_file))
    node = find_node(cluster, name, cluster_file)
    changes = {"folder": folder, "cores": cores, "memory_bytes": memory_bytes, "nice": nice, "ionice": ionice}
    cluster = with_changes(cluster, node.name, changes, disk_floor)
    node = cluster.node(node.name)
    root = folder_of(cluster, node)
    _enter(node, root, cluster.free_disk_floor_bytes)
    if enrol_port is not None:
        from datalocal.launch.enrolment import fetch

        fetch(cluster, node.name, enrol_port, wait_seconds=wait_seconds)
    serve(cluster, node, root, wait_seconds, ready_file)
    return 0


def find_node(cluster: Cluster, name: str | None, file: str) -> Node:
    """The node called `name`, or the one that is known under this host's name. Raises SpecError."""
    import difflib
    import socket

    from datalocal.errors import SpecError

    if cluster.kind != "existing":
        raise SpecError(file, "kind", f"the nodes of {cluster.kind} clusters are started by `datalocal cluster up`")
    names = [node.name for node in cluster.nodes]
    if name is None:
        host = socket.gethostname().lower()
        found = cluster.node_of_host.get(host) or cluster.node_of_host.get(host.partition(".")[0])
        if found is None:
            raise SpecError(file, "nodes", f"none has this host's name {host}", f"say which it is: --node {names[0]}")
        return cluster.node(found)
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {near[0]}?" if near else f"nodes: {', '.join(names)}"
        raise SpecError(file, "nodes", f"there is no node {name!r}", hint)
    return cluster.node(name)


def with_changes(cluster: Cluster, name: str, changes: Mapping[str, Any], disk_floor: int | None) -> Cluster:
    """The cluster with what the command line says of node `name`."""
    told = {key: value for key, value in changes.items() if value is not None}
    nodes = tuple(node.model_copy(update=told) if node.name == name else node for node in cluster.nodes)
    floor = {} if disk_floor is None else {"free_disk_floor_bytes": disk_floor}
    return cluster.model_copy(update={"nodes": nodes, **floor})


def folder_of(cluster: Cluster, node: Node) -> Path:
    """The node's folder on this host."""
    from datalocal.cli.find import home
    from datalocal.launch.embedded import node_root

    if node.folder:
        return Path(node.folder.replace("{name}", node.name)).expanduser()
    return node_root(home(), cluster.name, node.name)


def _enter(node: Node, root: Path, free_disk_floor_bytes: int) -> None:
    """Become the same command in the node's own Python environment, where the cluster file names one."""
    from datalocal.errors import ClusterError
    from datalocal.launch.environments import unpacked

    if node.environment is None:
        return
    wanted = Path(node.environment).expanduser()
    if wanted.is_file():
        wanted = unpacked(wanted, root.resolve() / "environments", free_disk_floor_bytes=free_disk_floor_bytes)
    if Path(sys.prefix).resolve() == wanted.resolve():
        return
    python = wanted / "bin" / "python"
    if not os.access(python, os.X_OK):
        raise ClusterError(f"{node.name}: there is no {python}", "`environment` is the folder of a virtual environment")
    if os.environ.get(_GUARD) == str(wanted):
        raise ClusterError(
            f"{node.name}: {python} belongs to {sys.prefix}, not to {wanted}", "is it a virtual environment?"
        )
    os.environ[_GUARD] = str(wanted)
    os.execv(python, [str(python), "-m", "datalocal", *sys.argv[1:]])  # noqa: S606  # the user's own interpreter, no shell


def serve(cluster: Cluster, node: Node, root: Path, wait_seconds: float, ready_file: Path | None) -> None:
    """Run the node in this process until SIGTERM. Raises ClusterError."""
    import logging

    from datalocal.cli.ready import serving
    from datalocal.launch.existing import own_tls, read_token
    from datalocal.launch.node import Joining, run

    assert cluster.scheduler is not None
    joining = Joining(
        cluster=cluster,
        node=node,
        root=root,
        scheduler=cluster.scheduler,
        token=read_token(cluster),
        tls=own_tls(cluster, node.name),
        wait_seconds=wait_seconds,
    )

    def in_words(told: Mapping[str, Any]) -> str:
        return f"{node.name} joined {cluster.scheduler}: worker {told['worker']}, store {told['store']}"

    with serving(ready_file, in_words) as ready:
        run(joining, ready=ready)
    logging.shutdown()
    os._exit(0)  # a task thread that still waits for its child must not keep a stopped node alive
