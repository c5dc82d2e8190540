"""A Hadoop configuration of our own: the folder that comes first on the class path. Addresses in, files out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from xml.sax.saxutils import escape

NAMENODE_PORT = 9000
NAMENODE_HTTP_PORT = 9870
_EVERY = "0.0.0.0"  # noqa: S104  # every interface of a network that only the cluster sees


@dataclass(frozen=True, slots=True, kw_only=True)
class Addresses:
    """Where the daemons are: `namenode` is an address or host name; `racks` gives the rack of each DataNode's IP address."""

    namenode: str
    racks: Mapping[str, str] = field(default_factory=dict)


def write_conf(
    folder: Path,
    addresses: Addresses,
    *,
    replication: int,
    block_bytes: int,
    properties: Mapping[str, str] | None = None,
) -> None:
    """Write the configuration for NameNode, DataNodes and tools into `folder`; one for all of them.

    Daemons find their own part in the environment: `DATALOCAL_HDFS_DATA` (folder of the data) and `DATALOCAL_HDFS_HOST`
    (name of the DataNode). `properties` go to hdfs-site.xml last: they win.
    """
    for part in ("hdfs", "datanode"):  # the web pages' folders: they must exist and may be empty
        (folder / "webapps" / part).mkdir(parents=True, exist_ok=True)
    table = folder / "topology.table"
    table.write_text("".join(f"{ip} /{rack.strip('/')}\n" for ip, rack in addresses.racks.items()), encoding="utf-8")
    core = {
        "fs.defaultFS": f"hdfs://{addresses.namenode}:{NAMENODE_PORT}",
        "hadoop.tmp.dir": "${env.DATALOCAL_HDFS_DATA}/tmp",
        "net.topology.node.switch.mapping.impl": "org.apache.hadoop.net.TableMapping",
        "net.topology.table.file.name": str(table),
    }
    hdfs = {
        "dfs.namenode.name.dir": "${env.DATALOCAL_HDFS_DATA}/name",
        "dfs.datanode.data.dir": "${env.DATALOCAL_HDFS_DATA}/data",
        "dfs.datanode.hostname": "${env.DATALOCAL_HDFS_HOST:-none}",
        "dfs.namenode.rpc-bind-host": _EVERY,
        "dfs.namenode.http-address": f"{addresses.namenode}:{NAMENODE_HTTP_PORT}",
        "dfs.namenode.http-bind-host": _EVERY,
        "dfs.namenode.datanode.registration.ip-hostname-check": "false",
        "dfs.replication": str(replication),
        "dfs.blocksize": str(-(-block_bytes // 512) * 512),
        "dfs.namenode.fs-limits.min-block-size": "65536",
        "dfs.namenode.safemode.extension": "0",
        "dfs.heartbeat.interval": "1s",
        # A DataNode is dead to the NameNode after 2 * recheck + 10 * heartbeat, 30 s here; stale after 10 s. HDFS's own is 630 s.
        "dfs.namenode.heartbeat.recheck-interval": "10000",
        "dfs.namenode.stale.datanode.interval": "10000",
        "dfs.namenode.avoid.read.stale.datanode": "true",
        "dfs.namenode.avoid.write.stale.datanode": "true",
    }
    _write_site(folder / "core-site.xml", core)
    _write_site(folder / "hdfs-site.xml", hdfs | dict(properties or {}))
    (folder / "hadoop-metrics2.properties").write_text("*.period=1\n", encoding="utf-8")
    (folder / "log4j.properties").write_text(_LOG4J, encoding="utf-8")


def _write_site(path: Path, properties: Mapping[str, str]) -> None:
    rows = "".join(
        f"  <property><name>{escape(name)}</name><value>{escape(value)}</value></property>\n"
        for name, value in properties.items()
    )
    path.write_text(f'<?xml version="1.0"?>\n<configuration>\n{rows}</configuration>\n', encoding="utf-8")


_LOG4J = """\
log4j.rootLogger=INFO,A
log4j.appender.A=org.apache.log4j.ConsoleAppender
log4j.appender.A.target=System.err
log4j.appender.A.layout=org.apache.log4j.PatternLayout
log4j.appender.A.layout.ConversionPattern=%d{ISO8601} %p %c: %m%n
log4j.logger.org.apache.hadoop.hdfs.server.datanode.DataNode.clienttrace=DEBUG,T
log4j.additivity.org.apache.hadoop.hdfs.server.datanode.DataNode.clienttrace=false
log4j.appender.T=org.apache.log4j.FileAppender
log4j.appender.T.File=${datalocal.trace}
log4j.appender.T.layout=org.apache.log4j.PatternLayout
log4j.appender.T.layout.ConversionPattern=%d{ISO8601} %m%n
"""
"""Reads are traced at DEBUG, writes at INFO; a file of its own holds nothing else."""
