"""`datalocal head`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from datalocal.cli.options import ready_file_option, required_cluster_option


@click.command("head", short_help="Run the head of an existing cluster: dask's scheduler and dashboard.")
@required_cluster_option
@click.option(
    "--dashboard",
    default="127.0.0.1:8787",
    show_default=True,
    metavar="ADDRESS:PORT",
    help="Where dask's pages are; they know no password. Empty: none.",
)
@click.option(
    "--enrol",
    "enrol_port",
    type=click.IntRange(1, 65535),
    help="On this port, hand every node its certificate and the token, once: for a network of the cluster's own only.",
)
@ready_file_option("the head listens")
def command(cluster_file: str, dashboard: str, enrol_port: int | None, ready_file: Path | None) -> int:
    """Listen at the cluster file's `scheduler`, and serve until SIGTERM.

    For a systemd unit, Slurm, SSH or a container to start. Only workers that show a certificate of the cluster's authority, run the
    same version and are in the same cluster file are let in.
    """
    from datalocal.cli.ready import serving
    from datalocal.errors import SpecError
    from datalocal.launch.existing import own_tls, read_token
    from datalocal.launch.head import Listening, run
    from datalocal.spec.cluster import load_cluster

    cluster = load_cluster(Path(cluster_file))
    if cluster.scheduler is None:
        raise SpecError(
            cluster_file, "kind", f"the head of {cluster.kind} clusters is started by `datalocal cluster up`"
        )

    def in_words(told: Mapping[str, Any]) -> str:
        pages = f", dashboard {told['dashboard']}" if told["dashboard"] else ""
        return f"{cluster.name}: scheduler {told['scheduler']}{pages}"

    with serving(ready_file, in_words) as ready:
        if enrol_port is not None:
            from datalocal.launch.enrolment import hand_out

            hand_out(cluster, enrol_port)  # makes what is not there yet
        read_token(cluster)  # runs are submitted from here: better to say now that it is missing
        listening = Listening(
            host=cluster.address("head"),
            port=int(cluster.scheduler.rpartition(":")[2]),
            dashboard=_address(dashboard),
            tls=own_tls(cluster, "head"),
            cluster=cluster,
        )
        run(listening, ready=ready)
    return 0


def _address(text: str) -> tuple[str, int] | None:
    if not text:
        return None
    host, colon, port = text.rpartition(":")
    if not (host and colon and port.isdecimal() and int(port) < 65536):
        raise click.BadParameter(f"{text!r} is not ADDRESS:PORT", param_hint="--dashboard")
    return host, int(port)
