"""What a person says about a cluster whose workers are started by the person's own means: where it meets, who may come in."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from datalocal.spec.base import Strict

if TYPE_CHECKING:
    from datalocal.spec.cluster import Cluster

_JOINED_ONLY = ("scheduler", "tls", "token_file")
_NODE_JOINED_ONLY = ("folder", "environment")


class Tls(Strict):
    """PEM files with which the head, the nodes and the runs of a cluster prove to each other who they are.

    `{name}` stands for the node's name, for `head`, or for `client` (who submits); `~` for the home of who runs the process.
    Relative paths start at the cluster file's folder.
    """

    ca: str = Field(description="the certificate authority that signed all others")
    certificate: str = Field(description="one's own certificate, e.g. tls/{name}.pem")
    key: str = Field(description="its private key, e.g. tls/{name}-key.pem")

    def of(self, name: str) -> Tls:
        """The files of `name`: a node, `head` or `client`."""
        return Tls(**{field: path.replace("{name}", name) for field, path in self.model_dump().items()})

    def below(self, folder: Path) -> Tls:
        """The same with absolute paths; relative ones are below `folder`."""
        return Tls(**{field: absolute(path, folder) for field, path in self.model_dump().items()})


def absolute(path: str, folder: Path) -> str:
    """`path` without `~`, below `folder` when it is relative."""
    return str(folder.resolve() / Path(path).expanduser())


def is_loopback(host: str) -> bool:
    """Whether `host` is this machine for sure: `localhost` or an address of the loopback interface."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def scheduler_host(scheduler: str) -> str:
    """The host in `tls://host:port`."""
    return scheduler.partition("://")[2].rpartition(":")[0]


def check_joining(cluster: Cluster) -> None:
    """Refuse a file that could not be joined, or that would be open to everybody. Raises ValueError."""
    if cluster.kind != "existing":
        _refuse(_JOINED_ONLY, [key for key in _JOINED_ONLY if getattr(cluster, key) is not None])
        told = [key for node in cluster.nodes for key in _NODE_JOINED_ONLY if getattr(node, key) is not None]
        _refuse(_NODE_JOINED_ONLY, told)
        return
    if cluster.scheduler is None:
        raise ValueError(
            "`kind: existing` needs `scheduler`: where its nodes and runs meet, e.g. tls://head.example.org:8786"
        )
    if cluster.token_file is None:
        raise ValueError(
            "`kind: existing` needs `token_file`: without it anybody could read and write the nodes' stores"
        )
    encrypted = cluster.scheduler.startswith("tls://")
    if encrypted and cluster.tls is None:
        raise ValueError("a scheduler at tls:// needs `tls`: its ca, certificate and key")
    if not encrypted and cluster.tls is not None:
        raise ValueError("`tls` is given, and the scheduler's address begins with tcp://: write tls://")
    hosts = [scheduler_host(cluster.scheduler), *(cluster.address(node.name) for node in cluster.nodes)]
    beyond = next((host for host in hosts if not is_loopback(host)), None)
    if beyond is not None and not encrypted:
        raise ValueError(
            f"{beyond} is beyond loopback: nothing listens there without TLS (scheduler: tls://..., and `tls`); "
            "`datalocal cluster certificates` makes what it needs"
        )
    if not is_loopback(hosts[0]):
        nowhere = [node.name for node in cluster.nodes if not node.hosts]
        if nowhere:
            raise ValueError(f"`hosts` is missing: under which address do the others reach {', '.join(nowhere)}?")


def _refuse(keys: Sequence[str], told: Sequence[str]) -> None:
    if told:
        raise ValueError(
            f"`{told[0]}` is for `kind: existing` only (as are {', '.join(keys)}): others start their own nodes"
        )
