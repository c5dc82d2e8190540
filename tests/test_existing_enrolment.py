"""The first start without a person: every node is handed its files, once, to who asks first."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from datalocal.errors import ClusterError
from datalocal.launch.enrolment import fetch, hand_out
from datalocal.launch.existing import own_tls, read_token
from datalocal.spec.cluster import Cluster, load_cluster
from tests import joining


def hosts(folder: Path, *names: str) -> list[Cluster]:
    """The same cluster as several hosts see it, each with a folder of its own."""
    return [load_cluster(joining.config(folder / name, scheduler="tls://127.0.0.1:8786")) for name in names]


def test_each_node_gets_its_own_files_once_and_then_nobody_listens(tmp_path: Path) -> None:
    head, first, second, third, thief = hosts(tmp_path, "head", "one", "two", "three", "thief")
    port = joining.free_port()
    assert hand_out(head, port) is not None
    fetch(first, "node1", port, wait_seconds=10)
    got, given = own_tls(first, "node1"), own_tls(head, "node1")
    assert got is not None and given is not None
    assert Path(got.key).read_bytes() == Path(given.key).read_bytes()
    assert Path(got.key).stat().st_mode & 0o077 == 0
    assert read_token(first) == read_token(head)
    with pytest.raises(ClusterError, match="handed out already") as refused:
        fetch(thief, "node1", port, wait_seconds=10)
    assert ".given-node1" in refused.value.hint
    with pytest.raises(ClusterError, match="no node 'head'"):
        fetch(thief, "head", port, wait_seconds=10)
    fetch(first, "node1", port, wait_seconds=0)
    fetch(second, "node2", port, wait_seconds=10)
    fetch(third, joining.COMPUTE, port, wait_seconds=10)
    for thread in [each for each in threading.enumerate() if each.name.startswith("datalocal-enrolment")]:
        thread.join(10)
    with pytest.raises(ClusterError, match="nobody hands one out"):
        fetch(thief, "node1", port, wait_seconds=0)
    assert hand_out(head, port) is None, "all were handed out: the next start listens no more"
