"""A cluster whose workers others started: found through its scheduler, never brought up or taken down from here."""

from __future__ import annotations

import stat
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from datalocal.errors import ClusterError
from datalocal.execution.base import NodeFacts
from datalocal.execution.dask import DaskExecutor
from datalocal.spec.cluster import Cluster
from datalocal.spec.joining import Tls
from datalocal.storage.client import Store
from datalocal.storage.counting import ByteCounter
from datalocal.storage.opening import open_store
from datalocal.storage.tls import read_pem

_YOUNG_SECONDS = 60.0
"""A cluster whose head is younger is waited for until all its nodes are there: it was just brought up."""

_LOOK_SECONDS = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Joined:
    """A cluster that answers: what its nodes said of themselves. `token` is a secret."""

    cluster: Cluster
    scheduler: str
    facts: Mapping[str, NodeFacts]
    token: str = field(repr=False)
    tls: Tls | None

    def store(self, counter: ByteCounter) -> Store:
        """The store as the head sees it: it has no folder of its own."""
        return open_store(
            self.cluster,
            node="head",
            root=None,
            stores=self.stores,
            token=self.token,
            counter=counter,
            tls=self.tls,
        )

    @property
    def stores(self) -> dict[str, str]:
        """Location of the store of every node that answers."""
        return {name: facts.store for name, facts in self.facts.items()}

    @property
    def alive(self) -> tuple[str, ...]:
        """Names of the nodes that answer, in file order."""
        return tuple(node.name for node in self.cluster.nodes if node.name in self.facts)


def join(cluster: Cluster) -> Joined:
    """Ask the scheduler who is there, as the submitter. Raises ClusterError: no scheduler, refused, no node, another version."""
    assert cluster.scheduler is not None
    token, tls = read_token(cluster), own_tls(cluster, "client")
    executor = DaskExecutor(cluster=cluster, scheduler=cluster.scheduler, run="look", token=token, tls=tls)
    try:
        facts = executor.facts()
        while len(facts) < len(cluster.nodes) and executor.seconds_up < _YOUNG_SECONDS:
            time.sleep(_LOOK_SECONDS)  # the scheduler tells nobody who has come
            facts = executor.facts()
    finally:
        executor.close()
    if not facts:
        raise ClusterError(
            f"the scheduler at {cluster.scheduler} knows no node of {cluster.name!r}",
            "start them on their hosts: datalocal worker --cluster FILE --node NAME",
        )
    return Joined(cluster=cluster, scheduler=cluster.scheduler, facts=facts, token=token, tls=tls)


def own_tls(cluster: Cluster, name: str) -> Tls | None:
    """The certificates that `name` (a node, `head` or `client`) shows. Raises ClusterError naming a file that is not there."""
    if cluster.tls is None:
        return None
    own = cluster.tls.of(name)
    for path in (own.ca, own.certificate, own.key):
        read_pem(path)
    return own


def read_token(cluster: Cluster) -> str:
    """The cluster's secret. Raises ClusterError, never with any of the content."""
    path = Path(str(cluster.token_file))
    make = "`datalocal cluster certificates` makes one; it has to be the same on every host"
    try:
        token = path.read_text(encoding="ascii").strip()
        mode = path.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        raise ClusterError(f"the token file {path} cannot be read: {getattr(error, 'strerror', error)}", make) from None
    if len(token) < 16:
        raise ClusterError(f"the token in {path} has {len(token)} characters, fewer than 16", make)
    if mode & (stat.S_IROTH | stat.S_IWOTH):
        raise ClusterError(f"the token file {path} is open to every user of this host", f"chmod 600 {path}")
    return token
