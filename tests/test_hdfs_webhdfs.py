"""WebHDFS answers of a real NameNode (Hadoop 3.5.0), recorded, and what is made of them."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from datalocal.errors import StorageError
from datalocal.spec.cluster import Cluster, Storage
from datalocal.spec.job import Columns
from datalocal.storage.counting import ByteCounter
from datalocal.storage.hdfs import namenode, webhdfs, writing
from datalocal.storage.hdfs.client import HdfsStore
from datalocal.storage.hdfs.namenode import MissingError, NameNode
from datalocal.storage.hdfs.survey import Found, survey
from datalocal.storage.listing import ShardListing


def location(host: str, ip: str, rack: str, state: str = "NORMAL") -> dict[str, Any]:
    return {
        "adminState": state,
        "hostName": host,
        "ipAddr": ip,
        "name": f"{ip}:9866",
        "networkLocation": rack,
        "xferPort": 9866,
        "infoPort": 9864,
        "ipcPort": 9867,
    }


def located(*locations: dict[str, Any], offset: int = 0, size: int = 5976100, corrupt: bool = False) -> dict[str, Any]:
    return {
        "block": {"blockId": 1073741825, "blockPoolId": "BP-1", "generationStamp": 1001, "numBytes": size},
        "blockToken": {"urlString": "AAAAAA"},
        "cachedLocations": [],
        "isCorrupt": corrupt,
        "startOffset": offset,
        "storageTypes": ["DISK", "DISK"],
        "locations": list(locations),
    }


DN1 = location("dn1", "10.77.0.11", "/dc1/rack1")
DN3 = location("dn3.example.org", "10.77.0.13", "/dc1/rack2")


def answer(*blocks: dict[str, Any]) -> dict[str, Any]:
    return {"LocatedBlocks": {"fileLength": 1, "isUnderConstruction": False, "locatedBlocks": list(blocks)}}


def test_blocks_of_the_undocumented_answer() -> None:
    (block,) = webhdfs.located_blocks(answer(located(DN1, DN3)))
    assert (block.offset, block.bytes) == (0, 5976100)
    assert [(at.host, at.ip, at.rack) for at in block.locations] == [
        ("dn1", "10.77.0.11", "/dc1/rack1"),
        ("dn3.example.org", "10.77.0.13", "/dc1/rack2"),
    ]
    assert block.locations[1].names == ("10.77.0.13", "dn3.example.org", "dn3")


def test_a_replica_that_is_not_normal_and_a_corrupt_block_do_not_count() -> None:
    leaving = location("dn4", "10.77.0.14", "/dc1/rack2", "DECOMMISSION_INPROGRESS")
    blocks = webhdfs.located_blocks(answer(located(DN1, leaving), located(DN1, DN3, offset=5976100, corrupt=True)))
    assert [[at.host for at in block.locations] for block in blocks] == [["dn1"], []]


def test_blocks_of_the_public_answer() -> None:
    told = {
        "BlockLocations": {
            "BlockLocation": [
                {
                    "offset": 0,
                    "length": 5976100,
                    "hosts": ["dn1", "dn3"],
                    "names": ["10.77.0.11:9866", "10.77.0.13:9866"],
                    "topologyPaths": ["/dc1/rack1/10.77.0.11:9866", "/dc1/rack2/10.77.0.13:9866"],
                    "cachedHosts": [],
                    "corrupt": False,
                    "storageTypes": ["DISK", "DISK"],
                }
            ]
        }
    }
    (block,) = webhdfs.file_blocks(told)
    assert [(at.host, at.ip, at.rack) for at in block.locations] == [
        ("dn1", "10.77.0.11", "/dc1/rack1"),
        ("dn3", "10.77.0.13", "/dc1/rack2"),
    ]


def row(name: str, *, kind: str = "FILE", **more: Any) -> dict[str, Any]:
    return {
        "pathSuffix": name,
        "type": kind,
        "length": 10,
        "blockSize": 8388608,
        "replication": 2,
        "fileId": 16388,
        "modificationTime": 1700000000000,
        "owner": "root",
        "permission": "644",
        **more,
    }


def test_a_file_status_with_and_without_erasure_coding() -> None:
    plain = webhdfs.status({"FileStatus": row("")})
    assert (plain.bytes, plain.block_bytes, plain.replication, plain.is_folder) == (10, 8388608, 2, False)
    assert not plain.erasure_coded
    coded = webhdfs.status({"FileStatus": row("", ecBit=True, ecPolicy="XOR-2-1-1024k", replication=1)})
    assert coded.erasure_coded


@pytest.mark.parametrize(
    ("name", "is_one"),
    [
        ("part-00000.parquet", True),
        ("part-0", True),
        ("x.parq", True),
        ("_SUCCESS", False),
        ("_metadata", False),
        (".part-00000.parquet.crc", False),
        ("part-00000.parquet.crc", False),
        ("part-00000.parquet._COPYING_", False),
        ("notes.txt", False),
    ],
)
def test_which_files_may_be_shards(name: str, is_one: bool) -> None:
    assert webhdfs.is_shard_name(name) is is_one


# -- a NameNode that answers what it is told to, over real HTTP ----------------------------------------------------------------


class Scripted:
    """Answers by operation: a callable of the query, a value, or (status, RemoteException's name)."""

    def __init__(self) -> None:
        self.answers: dict[str, Any] = {}
        self.asked: list[dict[str, str]] = []
        scripted = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked = urlsplit(self.path)
                query = {"path": asked.path} | {key: values[0] for key, values in parse_qs(asked.query).items()}
                scripted.asked.append(query)
                found = scripted.answers[query["op"]]
                found = found(query) if callable(found) else found
                status, content = (200, found) if isinstance(found, dict) else found
                if isinstance(content, str):
                    content = {"RemoteException": {"exception": content, "message": f"{content} it is\nat x"}}
                body = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            do_PUT = do_DELETE = do_GET  # noqa: N815  # the names that http.server wants

            def log_message(self, *_: Any) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    made = Scripted()
    yield made
    made.close()


def client(*urls: str, timeout_seconds: float = 10.0) -> NameNode:
    return NameNode(
        Storage(
            kind="hdfs",
            namenode="hdfs://nn:9000",
            webhdfs=urls,
            user="somebody",
            namenode_timeout_seconds=timeout_seconds,
        )
    )


def test_a_listing_goes_on_after_the_last_name_of_a_page(scripted: Scripted) -> None:
    """`startafter` in small letters: the documented `startAfter` is ignored, and page 1 would come for ever."""
    pages = {"": (["a", "b"], 1), "b": (["c"], 0)}

    def list_page(query: dict[str, str]) -> dict[str, Any]:
        names, left = pages[query.get("startafter", "")]
        statuses = {"FileStatuses": {"FileStatus": [row(name) for name in names]}}
        return {"DirectoryListing": {"partialListing": statuses, "remainingEntries": left}}

    scripted.answers["LISTSTATUS_BATCH"] = list_page
    assert [file.path for file in client(scripted.url).listing("/d")] == ["a", "b", "c"]
    assert all(query["user.name"] == "somebody" for query in scripted.asked)


def test_hidden_folders_and_files_are_left_out_of_a_data_set(scripted: Scripted) -> None:
    rows = [row("_temporary", kind="DIRECTORY"), row(".incoming", kind="DIRECTORY"), row("p.parquet"), row("_SUCCESS")]
    statuses = {"FileStatuses": {"FileStatus": rows}}
    scripted.answers["LISTSTATUS_BATCH"] = {"DirectoryListing": {"partialListing": statuses, "remainingEntries": 0}}
    assert [file.path for file in client(scripted.url).files("/d")] == ["p.parquet"]


def test_fewer_replicas_than_the_file_shall_have_are_asked_for_again(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(namenode, "_REPLICAS_SECONDS", 60.0)  # the first answer may be long in coming
    told = [answer(located(DN1)), answer(located(DN1, DN3))]
    scripted.answers["GET_BLOCK_LOCATIONS"] = lambda _: told.pop(0) if len(told) > 1 else told[0]
    (block,) = client(scripted.url).blocks(webhdfs.status({"FileStatus": row("")}), "/d/p")
    assert [at.host for at in block.locations] == ["dn1", "dn3.example.org"]


def reports(scripted: Scripted, *, at_question: int) -> None:
    """A file of two replicas that is there, whole; the second is reported when blocks are asked for the so-many-th time."""
    asked = itertools.count(1)
    scripted.answers |= {"MKDIRS": {}, "RENAME": {}, "GETFILESTATUS": {"FileStatus": row("")}}
    scripted.answers["GET_BLOCK_LOCATIONS"] = lambda _: answer(
        located(DN1, DN3) if next(asked) >= at_question else located(DN1)
    )


class NoData:
    """A client of HDFS's data that has always written what it was told to."""

    def create(self, *_: Any, **__: Any) -> None:
        pass


def write(to: NameNode, monkeypatch: pytest.MonkeyPatch, *, patience_seconds: float) -> list[str]:
    """Where the replicas of a file that was just written lie, as far as is told within `patience_seconds`."""
    monkeypatch.setattr(writing, "data_client", lambda _: NoData())
    monkeypatch.setattr(namenode, "_REPLICAS_SECONDS", 0.0)
    monkeypatch.setattr(namenode, "_WRITTEN_SECONDS", patience_seconds)
    sizes = {"size_bytes": 10, "block_bytes": 512, "replication": 2}
    (block,) = writing.write_file(to, Storage(kind="hdfs", namenode="hdfs://nn:9000"), "/d/p", list, **sizes)
    return [at.host for at in block.locations]


def test_a_replica_that_is_reported_late_has_its_hop_in_the_bytes_of_a_write(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports(scripted, at_question=4)
    assert write(client(scripted.url), monkeypatch, patience_seconds=60) == ["dn1", "dn3.example.org"]


def test_replicas_that_nobody_has_are_waited_for_once_and_not_for_every_file(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    to = client(scripted.url)
    reports(scripted, at_question=2)
    assert write(to, monkeypatch, patience_seconds=0) == ["dn1"]
    reports(scripted, at_question=2)
    assert write(to, monkeypatch, patience_seconds=60) == ["dn1"], "the last was waited for in vain"
    reports(scripted, at_question=1)
    assert write(to, monkeypatch, patience_seconds=60) == ["dn1", "dn3.example.org"]
    reports(scripted, at_question=2)
    assert write(to, monkeypatch, patience_seconds=60) == ["dn1", "dn3.example.org"], "all DataNodes report again"


def test_where_the_undocumented_operation_is_refused_the_public_one_is_asked(scripted: Scripted) -> None:
    scripted.answers["GET_BLOCK_LOCATIONS"] = (400, "IllegalArgumentException")
    public = {"offset": 0, "length": 9, "hosts": ["dn1"], "names": ["10.77.0.11:9866"], "corrupt": False}
    scripted.answers["GETFILEBLOCKLOCATIONS"] = {"BlockLocations": {"BlockLocation": [public]}}
    (block,) = client(scripted.url).blocks(webhdfs.status({"FileStatus": row("", replication=1)}), "/d/p")
    assert block.bytes == 9


def test_a_standby_is_passed_over_and_safe_mode_is_waited_for(scripted: Scripted) -> None:
    standby = Scripted()
    try:
        standby.answers["GETFILESTATUS"] = (403, "StandbyException")
        told: list[Any] = [(403, "SafeModeException"), {"FileStatus": row("")}]
        scripted.answers["GETFILESTATUS"] = lambda _: told.pop(0)
        assert client(standby.url, scripted.url).status("/d/p").bytes == 10
    finally:
        standby.close()


def test_a_missing_file_and_a_namenode_that_is_away_are_told_apart(scripted: Scripted) -> None:
    scripted.answers["GETFILESTATUS"] = (404, "FileNotFoundException")
    with pytest.raises(MissingError, match="/d/p"):
        client(scripted.url).status("/d/p")
    scripted.close()
    with pytest.raises(StorageError, match=r"does not answer within 0\.3 s.*refused") as away:
        client(scripted.url, timeout_seconds=0.3).status("/d/p")
    assert "safe mode" in away.value.hint


def test_other_refusals_say_what_the_namenode_said(scripted: Scripted) -> None:
    scripted.answers["DELETE"] = (403, "AccessControlException")
    with pytest.raises(StorageError, match="AccessControlException: AccessControlException it is\n"):
        client(scripted.url).delete("/d")


# -- a data set as the cluster sees it -------------------------------------------------------------------------------------


def test_a_namenode_that_is_away_is_waited_for_once_however_many_nodes_there_are(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(namenode, "_PAUSE_SECONDS", 60.0)  # longer than its patience: one question is one wait
    scripted.answers["LISTSTATUS_BATCH"] = (403, "SafeModeException")
    storage = {"kind": "hdfs", "namenode": "hdfs://nn:9000", "webhdfs": [scripted.url]}
    nodes = [{"name": f"node{number}", "rack": "r"} for number in range(3)]
    cluster = Cluster.model_validate(
        {
            "name": "c",
            "kind": "existing",
            "scheduler": "tcp://127.0.0.1:1",
            "token_file": "token",
            "replication": 1,
            "storage": storage,
            "nodes": nodes,
        }
    )
    with HdfsStore(cluster, node="head", root=None, stores={}, token="t", counter=ByteCounter()) as store:
        for node in ("node0", "node1", "node2"):
            with pytest.raises(StorageError, match=r"HDFS does not answer within 10 s.*SafeMode"):
                store.list(node, "pictures", Columns())
        with pytest.raises(StorageError, match="SafeMode"):
            store.remarks("pictures", Columns())
    assert len(scripted.asked) == 1


def test_a_split_shard_goes_to_who_has_its_row_groups_and_a_coded_one_to_nobody(scripted: Scripted) -> None:
    """`split` is three blocks: dn1 has the longest, dn3 the row groups. `coded` is one group of stripes on both."""
    rows = [row("coded.parquet", ecBit=True, replication=1), row("split.parquet", replication=1)]
    statuses = {"FileStatuses": {"FileStatus": rows}}
    scripted.answers["LISTSTATUS_BATCH"] = {"DirectoryListing": {"partialListing": statuses, "remainingEntries": 0}}
    split = [located(DN3, size=300), located(DN1, offset=300, size=500), located(DN3, offset=800, size=100)]
    coded = [located(DN1, DN3, size=900)]
    scripted.answers["GET_BLOCK_LOCATIONS"] = lambda query: answer(*(coded if "coded" in query["path"] else split))
    nodes = [
        {"name": name, "rack": "r", "hosts": [ip]} for name, ip in (("one", "10.77.0.11"), ("three", "10.77.0.13"))
    ]
    cluster = Cluster.model_validate({"name": "c", "replication": 1, "nodes": nodes})

    def look(found: Sequence[Found]) -> dict[str, ShardListing]:
        keys = [each.file.path for each in found]
        return {key: ShardListing(key=key, bytes=900, group_bytes=(296, 100), group_starts=(4, 750)) for key in keys}

    found = survey(client(scripted.url), cluster, "/d", look)
    assert found.holders == {"coded.parquet": (), "split.parquet": ("three",)}
    assert [[shard.key for shard in found.on(node)] for node in ("one", "three")] == [
        ["coded.parquet"],
        ["coded.parquet", "split.parquet"],
    ]
    assert found.remarks == (
        "coded.parquet: erasure-coded, so no node is preferred: every read gathers pieces from several nodes",
        "split.parquet: its blocks lie on different nodes, and the best node has 87 % of it at least "
        "(1 of 2 row groups whole): a shard should be one block",
    )
