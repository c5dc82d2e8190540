"""Options that mean the same in every command, and JSON for scripts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

CLUSTER_VARIABLE = "DATALOCAL_CLUSTER"
"""Names the cluster config where a command line does not."""

Command = TypeVar("Command", bound=Callable[..., Any])


def cluster_option(command: Command) -> Command:
    """`--cluster FILE`."""
    return click.option(
        "--cluster",
        "cluster_file",
        type=click.Path(dir_okay=False),
        envvar=CLUSTER_VARIABLE,
        help=f"Cluster config. Default: ${CLUSTER_VARIABLE}, else the embedded cluster.",
    )(command)


def required_cluster_option(command: Command) -> Command:
    """`--cluster FILE` where no cluster is meant by default."""
    return click.option(
        "--cluster",
        "cluster_file",
        type=click.Path(dir_okay=False),
        required=True,
        envvar=CLUSTER_VARIABLE,
        help=f"Cluster config. Default: ${CLUSTER_VARIABLE}.",
    )(command)


def ready_file_option(what: str) -> Callable[[Command], Command]:
    """`--ready-file FILE`; `what` is said of it in the help."""
    return click.option("--ready-file", type=click.Path(path_type=Path), help=f"Exists while {what}.")


def json_option(command: Command) -> Command:
    """`--json`."""
    return click.option(
        "--json", "as_json", is_flag=True, help="Print JSON on standard output and nothing else there."
    )(command)


def echo_json(content: Any) -> None:
    """JSON for scripts: nothing but JSON goes to standard output."""
    click.echo(json.dumps(content, indent=1))
