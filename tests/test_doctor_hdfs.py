"""What the doctor says of an HDFS, from what its NameNode tells."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from datalocal.cli.doctor_hdfs import DataNode, datanodes, examine_hdfs, files, mapping, racks, reporting, serving
from datalocal.errors import StorageError
from datalocal.metering.witness import Witnesses
from datalocal.spec.cluster import Cluster
from datalocal.storage.hdfs.webhdfs import FileStatus


def told(ip: str, state: str = "In Service", rack: str = "/rack1") -> dict[str, Any]:
    """As Hadoop 3.5.0 says it; what nobody reads is left out."""
    return {"infoAddr": f"{ip}:9864", "xferaddr": f"{ip}:9866", "location": rack, "adminState": state, "lastContact": 0}


LIVE = {"node1:9866": told("10.77.0.11"), "node2.example.org:9866": told("10.77.0.12", rack="/rack2")}


def info(live: dict[str, Any], dead: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    words = {"LiveNodes": json.dumps(live), "DeadNodes": json.dumps(dead or {})}
    return {**words, "Safemode": "", "NumberOfMissingBlocks": 0, **more}


def cluster(*hosts: tuple[str, ...], same_rack: bool = False, **storage: Any) -> Cluster:
    """node1, node2 and so on with these `hosts`."""
    nodes = [
        {"name": f"node{number}", "rack": "r" if same_rack else f"r{number}", "hosts": names}
        for number, names in enumerate(hosts, 1)
    ]
    where = {"kind": "hdfs", "namenode": "hdfs://nn:9000", **storage}
    tls = {"ca": "ca.pem", "certificate": "{name}.pem", "key": "{name}-key.pem"}
    joined = {"kind": "existing", "scheduler": "tls://10.77.0.1:1", "token_file": "token", "tls": tls}
    return Cluster.model_validate({"name": "c", "replication": 1, "storage": where, "nodes": nodes, **joined})


BOTH = ("10.77.0.11",), ("10.77.0.12",)


def test_datanodes_as_the_namenode_knows_them() -> None:
    found = datanodes(info(LIVE, {"node3:9866": {"lastContact": 900, "xferaddr": "10.77.0.13:9866"}}))
    assert found == [
        DataNode(host="node1", ip="10.77.0.11", state="In Service", rack="/rack1"),
        DataNode(host="node2.example.org", ip="10.77.0.12", state="In Service", rack="/rack2"),
        DataNode(host="node3", ip="10.77.0.13", state="dead", rack=""),
    ]
    assert found[1].names == ("10.77.0.12", "node2.example.org", "node2")


def test_safe_mode_is_a_failure() -> None:
    safe = serving("http://nn:9870", info(LIVE, Safemode="Safe mode is ON. The reported blocks 0 needs additional 5"))
    assert (safe.state, safe.found) == ("fail", "http://nn:9870: Safe mode is ON")
    assert serving("http://nn:9870", info(LIVE)).state == "ok"


def test_dead_and_leaving_datanodes_are_told_and_missing_blocks_are_a_failure() -> None:
    assert reporting(datanodes(info(LIVE)), 0).state == "ok"
    found = datanodes(info({**LIVE, "n4:9866": told("10.77.0.14", "Decommission In Progress")}, {"n3:9866": {}}))
    warned = reporting(found, 0)
    assert (warned.state, warned.found) == ("warn", "3 live; dead: n3 (); n4 (10.77.0.14) is decommission in progress")
    assert reporting(found, 2).state == "fail"
    assert reporting([], 0).state == "fail"


@pytest.mark.parametrize(
    ("hosts", "state", "words"),
    [
        (BOTH, "ok", "2 DataNodes are"),
        ((("node1.other",), ("node2.example.org",)), "ok", "2 DataNodes are"),  # by its own name, and by the long one
        ((("10.77.0.11", "node2"), ("10.77.0.12",)), "fail", "node2.example.org (10.77.0.12) is node1 and node2"),
        ((*BOTH, ("10.77.0.99",)), "fail", "no DataNode is known as node3"),
        ((("10.77.0.11",),), "warn", "node2.example.org (10.77.0.12): no node of the cluster file"),
    ],
)
def test_names_and_addresses_must_mean_the_same_node(
    hosts: tuple[tuple[str, ...], ...], state: str, words: str
) -> None:
    found = mapping(cluster(*hosts), datanodes(info(LIVE)))
    assert found.state == state and words in found.found, found


def test_racks_may_have_other_names_but_not_other_members() -> None:
    assert racks(cluster(*BOTH), datanodes(info(LIVE))).state == "ok"
    found = racks(cluster(*BOTH, same_rack=True), datanodes(info(LIVE)))
    assert found.state == "warn" and found.found.endswith("than r of the cluster file: /rack1: node1; /rack2: node2")
    nowhere = {name: {**each, "location": "/default-rack"} for name, each in LIVE.items()}
    assert racks(cluster(*BOTH), datanodes(info(nowhere))).state == "warn"


def test_shards_of_several_blocks_and_coded_ones_are_told() -> None:
    def file(path: str, size: int, *, coded: bool = False) -> FileStatus:
        return FileStatus(
            path=path, is_folder=False, bytes=size, block_bytes=100, replication=1, identity=(1, 1), erasure_coded=coded
        )

    assert files("/d", [file("a", 100), file("b", 7)]).state == "ok"
    found = files("/d", [file("a", 101), file("b", 7), file("c", 900, coded=True)])
    assert found.state == "warn"
    assert "1 are more than one block: a; 1 are erasure-coded" in found.found


class NameNodes:
    """Two NameNodes on loopback, by the first part of the path: what is in `states`, and everything that was asked."""

    def __init__(self, *states: str) -> None:
        self.asked: list[str] = []
        names = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                names.asked.append(f"{self.command} {self.path}")
                number, what = int(self.path[1]), self.path[2:]
                if "NameNodeStatus" in what:
                    content: Any = {"beans": [{"State": states[number]}]}
                elif "NameNodeInfo" in what:
                    content = {"beans": [info(LIVE)]}
                elif "op=LISTSTATUS_BATCH" in what:
                    statuses: Any = {"FileStatuses": {"FileStatus": []}}
                    content = {"DirectoryListing": {"partialListing": statuses, "remainingEntries": 0}}
                else:
                    content = {"boolean": True}
                body = json.dumps(content).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_PUT = do_DELETE = answer  # noqa: N815  # as http.server names them

            def log_message(self, *_: Any) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.urls = [f"http://127.0.0.1:{self._server.server_port}/{number}" for number in range(len(states))]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def served(request: pytest.FixtureRequest) -> Iterator[NameNodes]:
    made = NameNodes(*request.param)
    yield made
    made.close()


@pytest.mark.parametrize("served", [("standby", "active")], indirect=True)
def test_the_active_namenode_is_asked_and_what_is_written_to_try_is_taken_away(served: NameNodes) -> None:
    found = list(examine_hdfs(cluster(*BOTH, webhdfs=served.urls)))
    assert [finding.check.removeprefix("HDFS: ") for finding in found] == [
        "NameNode", "DataNodes", "host mapping", "racks", "permissions", "files",
    ]  # fmt: skip
    assert {finding.state for finding in found} == {"ok"}
    assert found[0].found == f"{served.urls[1]} is active and takes changes"
    made, gone = (
        [line.partition("?")[0].split()[1] for line in served.asked if line.startswith(verb)]
        for verb in ("PUT", "DELETE")
    )
    assert made == gone and len(made) == 1 and "/datalocal/.incoming/doctor-" in made[0]


class Guarded(BaseHTTPRequestHandler):
    """A DataNode's JMX that wants to know who asks."""

    def do_GET(self) -> None:  # as http.server names it
        known = self.headers["Authorization"] == "Negotiate ticket"
        self.send_response(200 if known else 401)
        self.end_headers()
        if known:
            self.wfile.write(b'{"beans": [{"BytesRead": 7}]}')

    def log_message(self, *_: Any) -> None:
        pass


def test_a_datanode_that_wants_a_ticket_is_a_witness_with_one_and_says_so_without() -> None:
    def no_ticket() -> str:
        raise StorageError("no Kerberos ticket for HTTP@node1")

    with HTTPServer(("127.0.0.1", 0), Guarded) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        at = "127.0.0.1", server.server_port
        ways: list[Callable[[], str]] = [str, no_ticket, lambda: "Negotiate ticket"]
        read = [Witnesses(control=dict, datanode=at, authorization=way).read() for way in ways]
        server.shutdown()
    assert [reading["jmx"] for reading in read] == [None, None, {"BytesRead": 7}]
    assert "401" in read[0]["missing"]["jmx"] and "no Kerberos ticket" in read[1]["missing"]["jmx"]


@pytest.mark.parametrize("served", [("standby", "standby")], indirect=True)
def test_without_an_active_namenode_each_one_is_named(served: NameNodes) -> None:
    (finding,) = examine_hdfs(cluster(*BOTH, webhdfs=served.urls))
    assert finding.state == "fail"
    assert finding.found == f"no NameNode is active: {served.urls[0]} is standby; {served.urls[1]} is standby"
