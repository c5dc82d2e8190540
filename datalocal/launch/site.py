"""The ground on which a cluster's processes stand: this machine's loopback, or network namespaces with their own HDFS."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

from datalocal.errors import ClusterError
from datalocal.launch import hadoop
from datalocal.launch.namespaces import Link, Network
from datalocal.launch.process import Identity, stop
from datalocal.spec.cluster import Cluster


class Site(Protocol):
    """Where head and nodes are started."""

    def prepare(self, running: Mapping[str, Identity], *, hold: bool) -> dict[str, Identity]:
        """Make ready what is not (`running` are the processes that were started before); the daemons, by name.

        `hold`: they end with this process.
        """

    def command(self, name: str) -> list[str]:
        """What to put before the command that starts `head` or a node."""

    def message(self, name: str) -> dict[str, Any]:
        """What the site tells a node's process beside the rest."""

    def entered(self) -> contextlib.AbstractContextManager[None]:
        """The calling thread is where the head is, and can reach every node."""


class Loopback:
    """Processes of this machine on 127.0.0.1: nothing to prepare."""

    def prepare(self, running: Mapping[str, Identity], *, hold: bool) -> dict[str, Identity]:
        return {}

    def command(self, name: str) -> list[str]:
        return []

    def message(self, name: str) -> dict[str, Any]:
        return {}

    def entered(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


class Namespaces:
    """Every node in a network namespace of its own, with a DataNode beside each storage node where data sets lie in HDFS."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self._cluster, self._folder = cluster, folder
        self._network = Network(folder)

    def prepare(self, running: Mapping[str, Identity], *, hold: bool) -> dict[str, Identity]:
        class_path = hadoop.class_path() if self._cluster.hdfs is not None else ""  # fails before anything is made
        anew = not any(identity.alive for identity in running.values())
        if anew:
            self._network.remove()
            prefix = ipaddress.IPv4Network(self._cluster.network.subnet).prefixlen
            self._network.create(self._links(), prefix)
        if self._cluster.hdfs is None:
            return {}
        try:
            return self._start_hdfs(running, class_path, hold=hold)
        except ClusterError:
            if anew:  # what else runs of a cluster that is mended goes on
                self._network.remove()
            raise

    def command(self, name: str) -> list[str]:
        return self._network.command(name)

    def message(self, name: str) -> dict[str, Any]:
        if self._cluster.hdfs is None:
            return {}
        return {"datanode_log": str(self._trace(name))}

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        with self._network.entered("head"):
            yield

    def _links(self) -> dict[str, Link]:
        cluster = self._cluster
        links = {"head": Link(address=cluster.address("head"))}
        if cluster.hdfs is not None:
            links["namenode"] = Link(address=cluster.address("namenode"))
        for node in cluster.nodes:
            rate = node.rate_mbit or cluster.network.rate_mbit
            links[node.name] = Link(address=cluster.address(node.name), rate_mbit=rate)
        return links

    def _trace(self, name: str) -> Path:
        return self._folder / "hdfs" / name / "clienttrace.log"

    def _start_hdfs(self, running: Mapping[str, Identity], class_path: str, *, hold: bool) -> dict[str, Identity]:
        cluster, conf = self._cluster, self._folder / "hdfs" / "conf"
        at = cluster.address("namenode")
        racks = {cluster.address(node.name): node.rack for node in cluster.storage_nodes}
        hadoop.write_conf(
            conf,
            hadoop.Addresses(namenode=at, racks=racks),
            replication=cluster.replication,
            block_bytes=cluster.block_bytes,
        )
        namenode = self._folder / "hdfs" / "namenode"
        if not (namenode / "name" / "current").is_dir():
            self._format(conf, class_path)
        daemons = {"namenode": "namenode"} | {f"datanode-{node.name}": node.name for node in cluster.storage_nodes}
        found: dict[str, Identity] = {}
        logs: dict[str, Path] = {}
        for daemon, host in daemons.items():
            logs[daemon] = self._folder / "logs" / f"{daemon}.log"
            known = running.get(daemon)
            if known is None or not known.alive:
                kind: hadoop.Daemon = "namenode" if daemon == "namenode" else "datanode"
                words = hadoop.command(kind, conf=conf, class_path=class_path, trace=self._trace(host))
                found[daemon] = self._start_daemon(host, words, logs[daemon], hold=hold)

        def ended() -> str:
            gone = [daemon for daemon, identity in found.items() if not identity.alive]
            return f"{gone[0]} ended, see {logs[gone[0]]}" if gone else ""

        try:
            with self.entered():
                hadoop.wait_until_ready(at, len(cluster.storage_nodes), alive=ended)
        except ClusterError as error:
            stop(list(found.values()))  # nobody would know of them
            raise ClusterError(error.message, f"the logs are in {self._folder / 'logs'}") from None
        return found

    def _environment(self, host: str) -> dict[str, str]:
        data = self._folder / "hdfs" / host
        data.mkdir(parents=True, exist_ok=True)
        return {**os.environ, "DATALOCAL_HDFS_DATA": str(data), "DATALOCAL_HDFS_HOST": host}

    def _format(self, conf: Path, class_path: str) -> None:
        words = hadoop.command("format", conf=conf, class_path=class_path)
        command = [*self._network.command("namenode"), *words]
        done = subprocess.run(
            command, env=self._environment("namenode"), capture_output=True, text=True, check=False, timeout=120
        )
        if done.returncode:
            told = ([line for line in done.stderr.splitlines() if "ERROR" in line] or ["it said nothing"])[0]
            raise ClusterError(f"the NameNode could not be formatted: {told}", f"its configuration is in {conf}")

    def _start_daemon(self, host: str, words: list[str], log: Path, *, hold: bool) -> Identity:
        log.parent.mkdir(parents=True, exist_ok=True)
        held = ["setpriv", "--pdeathsig", "TERM"] if hold else []
        with log.open("ab") as output:
            process = subprocess.Popen(
                [*held, *self._network.command(host), *words],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env=self._environment(host),
            )
        identity = Identity.of(process.pid)
        if identity is None:
            raise ClusterError(f"the daemon on {host} ended at once", f"see its log {log}")
        return identity


def site_of(cluster: Cluster, folder: Path) -> Site:
    """The site for `cluster`, whose state lies in `folder`. Raises ClusterError for one that others bring up."""
    if cluster.kind == "embedded":
        return Loopback()
    if cluster.kind == "netns":
        return Namespaces(cluster, folder)
    raise ClusterError(
        f"the cluster {cluster.name!r} is of kind {cluster.kind}: datalocal does not start its processes",
        "start its workers by your own means; `cluster up` is for embedded and netns clusters",
    )


def clear_away(folder: Path) -> list[str]:
    """Remove what a site left of itself outside `folder`, also after a crash: its namespaces with all that runs there."""
    return Network(folder).remove()
