"""The cluster of a config as a run or a command uses it, whoever started it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from datalocal.launch import embedded, existing
from datalocal.launch.embedded import ClusterHandle
from datalocal.launch.existing import Joined
from datalocal.spec.cluster import Cluster


@contextlib.contextmanager
def running(cluster: Cluster, home: Path, *, share: bool = False) -> Iterator[ClusterHandle | Joined]:
    """The cluster if it is up, or brought up for the while; one that others run is joined. `share`: only for a short look.

    Raises ClusterError.
    """
    if cluster.kind == "existing":
        yield existing.join(cluster)
        return
    with embedded.running(cluster, home, share=share) as handle:
        yield handle
