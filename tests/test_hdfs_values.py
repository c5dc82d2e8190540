"""HDFS's arithmetic: who holds how much, what a read costs on its wire, who sent it; and the cluster's addresses."""

from __future__ import annotations

import contextlib
import os
import socket
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datalocal.errors import ClusterError, SpecError, StorageError
from datalocal.launch import hadoop
from datalocal.launch.namespaces import Network
from datalocal.launch.process import Identity
from datalocal.launch.site import Namespaces
from datalocal.metering.trace import TraceFile, add_lines
from datalocal.metering.witness import SocketTotals
from datalocal.spec.base import parse
from datalocal.spec.cluster import Cluster, Storage, load_cluster
from datalocal.storage.hdfs import attribution
from datalocal.storage.hdfs.attribution import divide, served_by
from datalocal.storage.hdfs.data import PerProcess, telling
from datalocal.storage.hdfs.holders import held_bytes, node_at_address
from datalocal.storage.hdfs.webhdfs import Block, Location
from datalocal.storage.hdfs.where import Where, find_hdfs, rpc_ports
from datalocal.storage.hdfs.wire import traced_bytes
from datalocal.storage.hdfs.writing import hops
from datalocal.storage.sockets import Endpoint, SocketBytes, from_ss, host_sockets, tcp_sockets

ROOT = Path(__file__).resolve().parent.parent
NAMES = {"10.0.0.1": "a", "10.0.0.2": "b"}


def block(offset: int, size: int, *ips: str) -> Block:
    return Block(
        offset=offset, bytes=size, locations=tuple(Location(host=f"dn{ip[-1]}", ip=ip, rack="/r") for ip in ips)
    )


def test_a_shard_of_several_blocks_is_held_by_whom_holds_most_bytes() -> None:
    held = held_bytes([block(0, 10, "10.0.0.1"), block(10, 30, "10.0.0.2"), block(40, 5, "10.0.0.9")], NAMES)
    assert held.by_node == {"a": 10, "b": 30}
    assert held.best == ("b",)
    assert held.local_share == pytest.approx(30 / 45)
    assert held.strangers == {"dn9 (10.0.0.9)"}


def test_row_groups_are_what_is_scored_where_their_places_are_known() -> None:
    """b has most of the file, and a most of its row groups; the second group reaches over a block's end."""
    blocks = [block(0, 50, "10.0.0.1"), block(50, 60, "10.0.0.2")]
    held = held_bytes(blocks, NAMES, [(4, 30), (30, 60), (60, 70)])
    assert held_bytes(blocks, NAMES).best == ("b",)
    assert (held.by_node, held.best, held.bytes) == ({"a": 46, "b": 20}, ("a",), 66)
    assert (held.groups, held.whole) == (3, {"a": 1, "b": 1})
    both = held_bytes([block(0, 50, "10.0.0.1", "10.0.0.2"), *blocks[1:]], NAMES, [(4, 30), (30, 60), (60, 70)])
    assert both.whole == {"a": 1, "b": 3} and both.local_share == 1


@given(
    st.lists(st.tuples(st.integers(1, 50), st.sets(st.sampled_from(sorted(NAMES)))), min_size=1, max_size=6), st.data()
)
def test_cutting_a_file_into_row_groups_changes_nobodys_bytes(
    sizes: list[tuple[int, set[str]]], data: st.DataObject
) -> None:
    ends = [sum(size for size, _ in sizes[: n + 1]) for n in range(len(sizes))]
    blocks = [block(end - size, size, *ips) for end, (size, ips) in zip(ends, sizes, strict=True)]
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, ends[-1] - 1)))) | {0, ends[-1]})
    held = held_bytes(blocks, NAMES, list(pairwise(cuts)))
    assert (held.by_node, held.bytes) == (held_bytes(blocks, NAMES).by_node, ends[-1])
    assert all(count <= held.groups for count in held.whole.values())


def test_a_datanode_that_the_cluster_file_knows_by_name_only_is_found_behind_its_address() -> None:
    blocks = [block(0, 10, "10.0.0.1", "10.0.0.2"), block(10, 30, "10.0.0.9")]
    names = {"dn1": "a", "10.0.0.2": "b"}
    assert [node_at_address(f"10.0.0.{n}", blocks, names) for n in (1, 2, 9, 7)] == ["a", "b", "10.0.0.9", "10.0.0.7"]
    assert hops(blocks[:1], "a", names) == [
        ("a", "a", 10, "measured.writer"),
        ("a", "b", 10, "modelled.pipeline"),
    ]


@pytest.mark.parametrize(
    ("offset", "end", "size", "told"),
    [
        (0, 1, 5976100, 516),
        (511, 513, 5976100, 1032),
        (100, 1100, 5976100, 1548),
        (5976099, 5976100, 5976100, 40),
        (0, 5976100, 5976100, 6022792),
    ],
)
def test_what_a_datanode_counts_for_a_read(offset: int, end: int, size: int, told: int) -> None:
    """As Hadoop 3.5.0's clienttrace had it."""
    assert traced_bytes(offset, end, size) == told


@given(st.integers(1, 10_000), st.data())
def test_a_read_is_never_cheaper_than_its_bytes_nor_dearer_than_two_chunks_more(size: int, data: st.DataObject) -> None:
    offset = data.draw(st.integers(0, size - 1))
    end = data.draw(st.integers(offset + 1, size))
    cost = traced_bytes(offset, end, size)
    assert end - offset < cost <= (end - offset + 2 * 511) * 516 / 512 + 4


@given(st.dictionaries(st.sampled_from("abcd"), st.integers(1, 10**9)), st.integers(0, 10**9))
def test_shares_sum_to_what_was_read(received: dict[str, int], total: int) -> None:
    shares = divide(received, total)
    assert sum(shares.values()) == (total if received else 0)
    assert set(shares) == set(received)


def test_what_comes_late_of_an_earlier_read_is_no_part_of_this_one() -> None:
    assert served_by({"a": 2090, "b": 25}, 2064) == {"a": 2090}
    assert served_by({"a": 1024, "b": 1080}, 2064) == {"a": 1024, "b": 1080}, (
        "the second went on where the first broke off"
    )
    assert served_by({"a": 9, "b": 25}, 0) == {"a": 9, "b": 25}, "of erasure-coded files it is not known"


LINE = (
    "2026-11-21 14:00:00,000 src: /10.77.0.13:9866, dest: /10.77.0.12:51608, volume: , bytes: 66048, op: HDFS_READ, "
    "cliID: hdfs_native_client-1, offset: 0, srvID: 8c1, blockid: BP-1:blk_1_1008, duration(ns): 1187917\n"
)
WRITE = LINE.replace("HDFS_READ", "HDFS_WRITE").replace("66048", "100").replace("volume: ", "volume: /data/current")


def test_a_trace_is_summed_by_the_other_end() -> None:
    totals: dict[str, dict[str, list[int]]] = {}
    add_lines(totals, [LINE.encode(), LINE.encode(), WRITE.encode(), b"something else\n"])
    assert totals == {"read": {"10.77.0.12": [132096, 2]}, "write": {"10.77.0.13": [100, 1]}}


def test_a_growing_trace_is_read_once_and_half_lines_wait(tmp_path: Path) -> None:
    path = tmp_path / "trace"
    path.write_text(LINE + LINE[:40])
    trace = TraceFile(path)
    assert trace.read()["read"] == {"10.77.0.12": [66048, 1]}
    with path.open("a") as file:
        file.write(LINE[40:])
    assert trace.read()["read"] == {"10.77.0.12": [132096, 2]}
    path.unlink()
    path.write_text(LINE)
    assert trace.read()["read"]["10.77.0.12"][1] == 3, "a rotated file goes on counting"


SS = """\
ESTAB 0      0               10.77.0.11:41318          10.77.0.2:9000  cubic wscale:10,10 bytes_sent:990 bytes_retrans:90 \
bytes_acked:901 bytes_received:489 segs_out:19
ESTAB 0      0      [::ffff:10.77.0.11]:9866  [::ffff:10.77.0.13]:4000 bbr bytes_sent:5 segs_out:6
State Recv-Q Send-Q
"""


def test_what_ss_says_of_sockets() -> None:
    found = from_ss(SS.replace("\\\n", "").splitlines())
    assert found == {
        (("10.77.0.11", 41318), ("10.77.0.2", 9000)): SocketBytes(sent=900, received=489),
        (("10.77.0.11", 9866), ("10.77.0.13", 4000)): SocketBytes(sent=5, received=0),
    }


def test_the_hosts_sockets_are_those_of_this_process_and_more() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        peer, _ = server.accept()
        with peer:
            client.sendall(b"x" * 1000)
            assert len(peer.recv(1000, socket.MSG_WAITALL)) == 1000
            ends = peer.getsockname(), client.getsockname()
            assert tcp_sockets()[ends].received == 1000
            assert host_sockets()[ends].received == 1000


def test_bytes_of_sockets_that_come_and_go_stay_counted() -> None:
    first, second = (("10.0.0.1", 1), ("10.0.0.2", 9)), (("10.0.0.1", 2), ("10.0.0.2", 9))
    looks = iter([{first: 100}, {first: 150, second: 7}, {second: 8}, {first: 30, second: 8}, {first: 10}])
    totals = SocketTotals(lambda: next(looks))
    assert [totals.read() for _ in range(5)] == [100, 157, 158, 188, 198]


def test_each_byte_said_on_a_socket_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    first, other = (("10.0.0.1", 1), ("10.0.0.2", 9000)), (("10.0.0.1", 2), ("10.0.0.2", 9866))

    def counted(sent: int, received: int) -> dict[tuple[Endpoint, Endpoint], SocketBytes]:
        return {first: SocketBytes(sent=sent, received=received), other: SocketBytes(sent=5, received=10**6)}

    looks = iter([counted(100, 40), counted(100, 40), counted(130, 90), {}, counted(7, 3), counted(5, 2)])
    monkeypatch.setattr(attribution, "tcp_sockets", lambda: next(looks))
    questions = attribution.Questions()
    told = [questions.take({9000}) for _ in range(6)]
    assert told == [(100, 40), (0, 0), (30, 50), (0, 0), (7, 3), (5, 2)], "the last is another connection"


SITE = "<configuration><property><name>{}</name><value>{}</value></property></configuration>"


def test_a_name_service_gives_the_address_of_every_namenode(tmp_path: Path) -> None:
    (tmp_path / "core-site.xml").write_text(SITE.format("fs.defaultFS", "hdfs://prod"))
    rows = {
        "dfs.ha.namenodes.prod": "nn1, nn2",
        "dfs.namenode.http-address.prod.nn1": "one:9870",
        "dfs.namenode.http-address.prod.nn2": "two:50070",
    }
    inner = "".join(f"<property><name>{name}</name><value>{value}</value></property>" for name, value in rows.items())
    (tmp_path / "hdfs-site.xml").write_text(f"<configuration>{inner}</configuration>")
    where = find_hdfs(Storage(kind="hdfs", conf_dir=str(tmp_path)))
    assert rpc_ports(where) == {8020}
    assert where.url == "hdfs://prod"
    assert where.webhdfs == ("http://one:9870", "http://two:50070")


def test_without_any_address_hdfs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HADOOP_CONF_DIR", raising=False)
    with pytest.raises(StorageError, match=r"storage\.namenode"):
        find_hdfs(Storage(kind="hdfs"))


def cluster(**content: object) -> Cluster:
    nodes = [{"name": "a", "rack": "r1"}, {"name": "b", "rack": "r2", "hosts": ["10.9.0.2", "DN-B.example.org"]}]
    return parse(Cluster, {"name": "x", "replication": 1, "nodes": nodes, **content}, "cluster.yaml")


def test_nodes_of_namespaces_have_addresses_of_the_subnet() -> None:
    made = cluster(kind="netns", network={"subnet": "10.5.0.0/24"}, storage={"kind": "hdfs"})
    assert [made.address(name) for name in ("head", "namenode", "a", "b")] == [
        "10.5.0.1",
        "10.5.0.2",
        "10.5.0.11",
        "10.5.0.12",
    ]
    assert made.hdfs is not None and made.hdfs.namenode == "hdfs://10.5.0.2:9000"
    assert made.node_of_host["10.5.0.12"] == made.node_of_host["dn-b.example.org"] == "b"
    assert Cluster.model_validate(made.model_dump(mode="json")) == made


def test_hosts_name_a_node_of_an_existing_cluster() -> None:
    tls = {"ca": "ca.pem", "certificate": "{name}.pem", "key": "{name}-key.pem"}
    made = cluster(kind="existing", scheduler="tls://localhost:8786", tls=tls, token_file="token")
    assert made.address("b") == "10.9.0.2"
    assert made.hdfs is None
    assert Cluster.model_validate(made.model_dump(mode="json")) == made


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"storage": {"kind": "embedded", "root": "/x"}}, "only with `kind: hdfs`"),
        ({"network": {"rate_mbit": 5}}, "`kind: netns`"),
        ({"kind": "netns", "network": {"subnet": "8.8.8.0/24"}}, "private"),
        ({"kind": "netns", "storage": {"kind": "hdfs", "namenode": "hdfs://x:1"}}, "brings its own HDFS up"),
        ({"storage": {"kind": "hdfs", "namenod": "hdfs://x:1"}}, "did you mean `namenode`"),
    ],
)
def test_what_cannot_be_is_refused(content: dict[str, object], told: str) -> None:
    with pytest.raises(SpecError, match=told):
        cluster(**content)


@pytest.mark.parametrize("file", sorted((ROOT / "cluster-configs").glob("*.yaml")), ids=lambda file: file.stem)
def test_shipped_cluster_configs_can_be_read(file: Path) -> None:
    assert load_cluster(file).name == file.stem


# -- what the native client does to a process ----------------------------------------------------------------------------------


class PanicException(BaseException):  # the name that pyo3 gives a panic of Rust
    """Like that of a native extension: no Exception, so that nothing catches it by chance."""


def test_a_panic_of_the_native_client_is_an_error_of_one_read() -> None:
    with pytest.raises(StorageError, match="/d/p: range past the end"), telling("/d/p"):
        raise PanicException("range past the end\nat src/file.rs:1")
    with pytest.raises(KeyboardInterrupt), telling("/d/p"):
        raise KeyboardInterrupt


def test_a_forked_child_makes_a_client_of_its_own() -> None:
    clients = PerProcess()
    mine = clients.get("x", object)
    assert clients.get("x", object) is mine
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, b"same" if clients.get("x", object) is mine else b"new")
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as told:
        assert told.read() == b"new"
    assert os.waitpid(child, 0)[1] == 0
    assert clients.get("x", object) is mine


def test_the_ports_at_which_namenodes_answer() -> None:
    members = {"dfs.ha.namenodes.prod": "a,b", "dfs.namenode.rpc-address.prod.a": "one:8021"}
    both = members | {"dfs.namenode.rpc-address.prod.b": "two:8022"}
    for url, properties, ports in (
        ("hdfs://nn:9000", {}, {9000}),
        ("hdfs://nn", {}, {8020}),
        ("hdfs://prod", members, {8021}),
        ("hdfs://prod", both, {8021, 8022}),
    ):
        assert rpc_ports(Where(url=url, webhdfs=(), properties=properties)) == ports


@pytest.mark.parametrize("others_run", [True, False])
def test_hdfs_that_does_not_come_up_takes_only_a_new_cluster_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, others_run: bool
) -> None:
    plain = {"name": "c", "kind": "netns", "replication": 1, "nodes": [{"name": "a", "rack": "r"}]}
    made = Namespaces(Cluster.model_validate(plain | {"storage": {"kind": "hdfs"}}), tmp_path)
    removed: list[bool] = []
    monkeypatch.setattr(Network, "create", lambda *_: None)
    monkeypatch.setattr(Network, "remove", lambda _: removed.append(True))
    monkeypatch.setattr(hadoop, "class_path", lambda: "")
    (tmp_path / "hdfs" / "namenode" / "name").mkdir(parents=True)
    (tmp_path / "hdfs" / "namenode" / "name" / "current").mkdir()
    monkeypatch.setattr(Namespaces, "_start_daemon", lambda *_, **__: Identity(pid=1, created=-1.0))
    monkeypatch.setattr(Namespaces, "entered", lambda _: contextlib.nullcontext())

    def never(*_: object, **__: object) -> None:
        raise ClusterError("it is not ready")

    monkeypatch.setattr(hadoop, "wait_until_ready", never)
    own = Identity.of(os.getpid())
    assert own is not None
    running = {"head": own} if others_run else {}
    with pytest.raises(ClusterError, match="it is not ready"):
        made.prepare(running, hold=False)
    assert removed == ([] if others_run else [True, True]), "once before it is made, once after it failed"
