"""Cluster files of the kind `existing`: what is refused before anything starts, certificates, admission, a node's share."""

from __future__ import annotations

import datetime
import ipaddress
import multiprocessing
import os
import platform
import stat
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from cryptography import x509

import datalocal
from datalocal.cli.worker_ import find_node, with_changes
from datalocal.errors import ClusterError, SpecError
from datalocal.execution.handshake import refusal
from datalocal.execution.memory import MemoryBound
from datalocal.launch import embedded
from datalocal.launch.bounds import stay_within
from datalocal.launch.certificates import authority_key, days_left, make
from datalocal.launch.existing import own_tls, read_token
from datalocal.spec.cluster import Node, load_cluster
from datalocal.spec.joining import is_loopback
from tests import joining

OPEN = {"scheduler": "tcp://127.0.0.1:8786", "tls": None}


def node(**changes: Any) -> dict[str, Any]:
    return {"name": "node1", "rack": "r1", **changes}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"scheduler": "tcp://head.example.org:8786", "tls": None}, "beyond loopback"),
        (OPEN | {"nodes": [node(hosts=["10.0.0.7"])], "replication": 1}, "10.0.0.7 is beyond loopback"),
        ({"tls": None}, "needs `tls`"),
        ({"scheduler": "tcp://127.0.0.1:1"}, "write tls://"),
        ({"scheduler": None}, "needs `scheduler`"),
        ({"token_file": None}, "needs `token_file`"),
        ({"scheduler": "tls://10.0.0.1:8786"}, "`hosts` is missing"),
        ({"scheduler": "http://10.0.0.1:8786"}, "scheduler"),
        ({"kind": "embedded"}, "`scheduler` is for `kind: existing` only"),
    ],
)
def test_what_could_not_be_joined_or_would_be_open_to_all_is_refused(
    tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(SpecError, match=said.replace("`", ".")):
        load_cluster(joining.config(tmp_path, **changes))


def test_a_folder_or_environment_is_refused_where_datalocal_starts_the_nodes(tmp_path: Path) -> None:
    content = {"name": "mine", "replication": 1, "nodes": [node(environment="/opt/venv")]}
    path = tmp_path / "cluster.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(SpecError, match="environment"):
        load_cluster(path)


def test_datalocal_does_not_start_what_others_start(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="datalocal does not start its processes"):
        embedded.up(load_cluster(joining.config(tmp_path)), tmp_path / "home")
    assert not (tmp_path / "home").exists()


def test_without_tls_a_cluster_on_loopback_is_fine(tmp_path: Path) -> None:
    assert own_tls(load_cluster(joining.config(tmp_path, **OPEN)), "node1") is None


def test_paths_start_at_the_files_folder_and_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    tls = {"ca": "tls/ca.pem", "certificate": "~/{name}.pem", "key": "/etc/{name}-key.pem"}
    cluster = load_cluster(joining.config(tmp_path, tls=tls))
    assert cluster.tls is not None
    assert cluster.tls.of("node1").model_dump() == {
        "ca": str(tmp_path / "tls" / "ca.pem"),
        "certificate": "/home/someone/node1.pem",
        "key": "/etc/node1-key.pem",
    }
    assert cluster.token_file == str(tmp_path / "tls" / "token")


def test_loopback_is_told_from_addresses_and_never_guessed_from_names() -> None:
    assert all(map(is_loopback, ("127.0.0.1", "127.8.8.8", "::1", "localhost")))
    assert not any(map(is_loopback, ("10.0.0.1", "0.0.0.0", "head", "127.example.org", "localhost.example.org")))


def test_certificates_are_made_once_for_each_host_and_only_its_owner_reads_its_key(tmp_path: Path) -> None:
    nodes = [node(hosts=["dn1.example.org", "10.0.0.7"]), node(name="node2", hosts=["dn2.example.org"])]
    cluster = load_cluster(joining.config(tmp_path, scheduler="tls://head.example.org:8786", nodes=nodes))
    made = {each.name: each.files for each in make(cluster, folder=None, days=30, client_hosts=["desk.example.org"])}
    assert set(made) == {"node1", "node2", "head", "client"}
    assert cluster.tls is not None
    authority = x509.load_pem_x509_certificate(Path(cluster.tls.ca).read_bytes())
    names: dict[str, set[str]] = {}
    for name in made:
        own = own_tls(cluster, name)
        assert own is not None
        found = x509.load_pem_x509_certificate(Path(own.certificate).read_bytes())
        found.verify_directly_issued_by(authority)
        alternative = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names[name] = {str(each.value) for each in alternative}
        assert found.not_valid_after_utc - datetime.datetime.now(datetime.UTC) < datetime.timedelta(days=30)
        assert 29 < days_left(Path(own.certificate)) < 30
        assert stat.S_IMODE(Path(own.key).stat().st_mode) == 0o600
    assert names["node1"] == {"dn1.example.org", str(ipaddress.ip_address("10.0.0.7")), "node1"}
    assert names["client"] == {"head.example.org", "desk.example.org"}
    assert authority_key(Path(cluster.tls.ca)) not in {path for files in made.values() for path in files}
    before = {path: path.read_bytes() for files in made.values() for path in files}
    make(cluster, folder=None, days=30)
    assert before == {path: path.read_bytes() for path in before}, "what is there stays"
    Path(own_tls(cluster, "node2").certificate).unlink()  # type: ignore[union-attr]  # there are certificates
    make(cluster, folder=None, days=30)
    renewed = x509.load_pem_x509_certificate((tmp_path / "tls" / "node2.pem").read_bytes())
    renewed.verify_directly_issued_by(authority)


def test_the_shipped_file_says_all_that_a_cluster_of_hosts_needs(tmp_path: Path) -> None:
    cluster = load_cluster(Path(__file__).resolve().parent.parent / "cluster-configs" / "existing.yaml")
    made = {each.name: [path.name for path in each.files] for each in make(cluster, folder=tmp_path, days=1)}
    assert set(made) == {"dn1", "dn2", "dn3", "gpu1", "head", "client"}
    assert made["dn1"] == ["ca.pem", "dn1.pem", "dn1-key.pem", "token"]
    assert {path.name for path in tmp_path.iterdir()} == {name for names in made.values() for name in names} | {
        "ca-key.pem"
    }
    assert cluster.node_of_host["dn2.example.org"] == "dn2"


def test_a_key_that_all_hosts_would_share_is_refused(tmp_path: Path) -> None:
    tls = {"ca": "ca.pem", "certificate": "{name}.pem", "key": "key.pem"}
    with pytest.raises(SpecError, match=r"key\.pem is the same file for every host"):
        make(load_cluster(joining.config(tmp_path, tls=tls)), folder=None, days=1)


def test_a_token_that_is_missing_short_or_open_to_all_is_refused_without_showing_it(tmp_path: Path) -> None:
    cluster = load_cluster(joining.config(tmp_path, **OPEN))
    token = tmp_path / "tls" / "token"
    with pytest.raises(ClusterError, match="cannot be read"):
        read_token(cluster)
    token.parent.mkdir()
    token.write_text("abc")
    with pytest.raises(ClusterError, match="3 characters") as short:
        read_token(cluster)
    assert "abc" not in str(short.value)
    token.write_text("a-long-enough-secret\n")
    token.chmod(0o644)
    with pytest.raises(ClusterError, match="chmod 600") as open_to_all:
        read_token(cluster)
    assert "a-long-enough-secret" not in str(open_to_all.value)
    token.chmod(0o600)
    assert read_token(cluster) == "a-long-enough-secret"


def test_the_head_lets_in_the_same_version_under_a_known_name_of_the_same_cluster() -> None:
    same = (platform.python_version(), datalocal.__version__)
    assert refusal("node1", same, ["node1"], "c", "c") == ("", "")
    other_patch = (platform.python_version().rpartition(".")[0] + ".99", datalocal.__version__)
    assert refusal("node1", other_patch, ["node1"], "c", "c") == ("", "")
    assert "0.0.1" in refusal("node1", (same[0], "0.0.1"), ["node1"], "c", "c")[0]
    assert "Python 2.7" in refusal("node1", ("2.7.18", same[1]), ["node1"], "c", "c")[0]
    assert "did you mean node1?" in refusal("node11", same, ["node1"], "c", "c")[1]
    assert "head of 'c'" in refusal("node1", same, ["node1"], "other", "c")[0]


def test_a_node_is_found_by_name_or_by_this_hosts_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = load_cluster(joining.config(tmp_path))
    assert find_node(cluster, "node2", "f").name == "node2"
    with pytest.raises(SpecError, match="did you mean node2"):
        find_node(cluster, "nod2", "f")
    monkeypatch.setattr("socket.gethostname", lambda: "NODE1.example.org")
    assert find_node(cluster, None, "f").name == "node1"
    monkeypatch.setattr("socket.gethostname", lambda: "laptop")
    with pytest.raises(SpecError, match="none has this host's name laptop"):
        find_node(cluster, None, "f")


def test_the_command_line_wins_over_the_file_for_this_node_only(tmp_path: Path) -> None:
    cluster = load_cluster(joining.config(tmp_path))
    changed = with_changes(cluster, "node1", {"cores": 3, "nice": 5, "folder": None}, 77)
    assert (changed.node("node1").cores, changed.node("node1").nice) == (3, 5)
    assert changed.node("node1").folder == cluster.node("node1").folder
    assert changed.node("node2") == cluster.node("node2")
    assert changed.free_disk_floor_bytes == 77


def _share(node: Node, *, alone: bool) -> tuple[int, int, int]:
    stay_within(node, alone=alone)
    process = psutil.Process()
    return process.nice(), process.ionice().ioclass, len(os.sched_getaffinity(0))


def test_a_node_takes_no_more_than_its_share_and_gives_nothing_back() -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        before = len(os.sched_getaffinity(0))
        node = Node(name="n", rack="r", cores=1, nice=5, ionice="idle")
        nice, ioclass, cpus = pool.apply(_share, (node,), {"alone": True})
        assert (nice, ioclass, cpus) == (max(5, os.nice(0)), psutil.IOPRIO_CLASS_IDLE, 1)
        milder = node.model_copy(update={"nice": 1, "ionice": "normal", "cores": before})
        assert pool.apply(_share, (milder,), {"alone": True}) == (nice, ioclass, 1)


def _fill(connection: Any) -> None:
    block = bytearray(os.urandom(1 << 20)) * 200
    connection.send(len(block))
    connection.recv()


def _bounded() -> None:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_fill, args=(theirs,), daemon=True)
    process.start()
    assert ours.recv() == 200 << 20
    generous, tight = MemoryBound(1 << 50), MemoryBound(100 << 20)
    generous.look()
    assert process.is_alive() and generous.reason(process.pid or 0) == ""
    tight.look()
    process.join(30)
    assert process.exitcode == -9
    assert "memory_bytes" in tight.reason(process.pid or 0)


def test_the_largest_task_is_ended_when_all_together_use_too_much() -> None:
    """In a process of its own: the bound looks at all children of its process, and other tests have some."""
    process = multiprocessing.get_context("spawn").Process(target=_bounded)
    process.start()
    process.join(60)
    assert process.exitcode == 0
