"""HDFS's daemons in containers: `python -m datalocal.launch.hadoop namenode|datanode|ready`.

The process becomes the daemon, so the container's signals reach it and its log is the container's.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import click

from datalocal.errors import ClusterError
from datalocal.launch.hadoop.conf import Addresses, write_conf
from datalocal.launch.hadoop.daemons import Daemon, command, is_ready
from datalocal.launch.hadoop.jars import class_path


@click.group()
def hadoop() -> None:
    """HDFS's daemons, each the main process of a container."""


def _options(function: click.decorators.FC) -> click.decorators.FC:
    for option in (
        click.option("--namenode", default="namenode", show_default=True, help="Host name of the NameNode."),
        click.option("--data", type=click.Path(path_type=Path), default="/data", show_default=True, help="Its disk."),
        click.option("--replication", type=click.IntRange(1), default=2, show_default=True),
        click.option("--block-bytes", type=click.IntRange(65536), default=8 << 20, show_default=True),
    ):
        function = option(function)
    return function


@hadoop.command()
@_options
def namenode(namenode: str, data: Path, replication: int, block_bytes: int) -> None:
    """Become the NameNode; its folder is formatted when it is new."""
    conf = _configure(namenode, namenode, data, replication, block_bytes)
    jars = class_path()
    if not (data / "name" / "current").is_dir():
        done = subprocess.run(command("format", conf=conf, class_path=jars), check=False)
        if done.returncode:
            raise ClusterError("the NameNode's folder could not be formatted", "its log above says why")
    _become("namenode", conf, jars)


@hadoop.command()
@click.argument("host")
@_options
def datanode(host: str, namenode: str, data: Path, replication: int, block_bytes: int) -> None:
    """Become the DataNode that others know as HOST."""
    conf = _configure(host, namenode, data, replication, block_bytes)
    _become("datanode", conf, class_path(), trace=data / "clienttrace.log")


@hadoop.command()
@click.option("--namenode", default="namenode", show_default=True)
def ready(namenode: str) -> None:
    """Exit with 0 when the NameNode is out of safe mode: its DataNodes have told of every block."""
    if told := is_ready(namenode, 0):
        raise click.ClickException(told)


def _configure(host: str, namenode: str, data: Path, replication: int, block_bytes: int) -> Path:
    conf = data / "conf"
    write_conf(conf, Addresses(namenode=namenode), replication=replication, block_bytes=block_bytes)
    os.environ |= {"DATALOCAL_HDFS_DATA": str(data), "DATALOCAL_HDFS_HOST": host}
    return conf


def _become(daemon: Daemon, conf: Path, jars: str, *, trace: Path | None = None) -> None:
    words = command(daemon, conf=conf, class_path=jars, trace=trace)
    os.execvp(words[0], words)  # noqa: S606  # our own list, no shell


if __name__ == "__main__":
    try:
        hadoop(prog_name="python -m datalocal.launch.hadoop")
    except ClusterError as error:
        sys.exit(str(error))
