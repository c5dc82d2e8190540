"""Commands of HDFS's daemons and tools, and how to tell that they are ready."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal, TypeAlias

from datalocal.errors import ClusterError
from datalocal.launch.hadoop.conf import NAMENODE_HTTP_PORT
from datalocal.metering.jmx import jmx

Daemon: TypeAlias = Literal["namenode", "datanode", "format", "dfsadmin", "fsck", "fs", "ec"]

_CLASSES: Mapping[Daemon, str] = {
    "namenode": "org.apache.hadoop.hdfs.server.namenode.NameNode",
    "datanode": "org.apache.hadoop.hdfs.server.datanode.DataNode",
    "format": "org.apache.hadoop.hdfs.server.namenode.NameNode",
    "dfsadmin": "org.apache.hadoop.hdfs.tools.DFSAdmin",
    "fsck": "org.apache.hadoop.hdfs.tools.DFSck",
    "fs": "org.apache.hadoop.fs.FsShell",
    "ec": "org.apache.hadoop.hdfs.tools.ECAdmin",
}
# A small heap, one collector thread and the quick compiler: 120 to 160 MB per daemon, and half the start-up time.
_JAVA = (
    "-Xms16m",
    "-Xmx96m",
    "-XX:+UseSerialGC",
    "-XX:TieredStopAtLevel=1",
    "-Xss512k",
    "-XX:ReservedCodeCacheSize=48m",
)


def command(daemon: Daemon, *arguments: str, conf: Path, class_path: str, trace: Path | None = None) -> list[str]:
    """The command line of a daemon or tool. `trace` is the file for a DataNode's clienttrace.

    Daemons want DATALOCAL_HDFS_DATA and DATALOCAL_HDFS_HOST in their environment (see `write_conf`).
    """
    words = ("-format", "-nonInteractive") if daemon == "format" else arguments
    where = f"-Ddatalocal.trace={trace or '/dev/null'}"
    return ["java", *_JAVA, where, "-cp", f"{conf}:{class_path}", _CLASSES[daemon], *words]


def is_ready(namenode: str, datanodes: int) -> str:
    """Empty when the NameNode is out of safe mode and `datanodes` DataNodes are live; else what is not yet so."""
    try:
        state = jmx(f"http://{namenode}:{NAMENODE_HTTP_PORT}", "service=NameNode,name=FSNamesystemState")
    except (OSError, ValueError) as error:
        return f"the NameNode does not answer at {namenode}:{NAMENODE_HTTP_PORT} ({error})"
    if state is None:  # the port is open a second before the beans are there
        return "the NameNode is starting"
    if state["FSState"] != "Operational":
        return f"the NameNode is in state {state['FSState']}"
    if state["NumLiveDataNodes"] < datanodes:
        return f"{state['NumLiveDataNodes']} of {datanodes} DataNodes are live"
    return ""


def wait_until_ready(namenode: str, datanodes: int, *, alive: Callable[[], str], timeout_seconds: float = 90.0) -> None:
    """Wait for the NameNode and its DataNodes. `alive` tells, in words, of a daemon that has ended; empty while all live.

    Raises ClusterError saying what was missing.
    """
    deadline = time.monotonic() + timeout_seconds
    while told := is_ready(namenode, datanodes):
        if ended := alive():
            raise ClusterError(f"HDFS did not start: {ended}", "its log says why")
        if time.monotonic() > deadline:
            raise ClusterError(f"HDFS was not ready within {timeout_seconds:.0f} s: {told}", "see the daemons' logs")
        time.sleep(0.2)  # JMX has no way to wait
