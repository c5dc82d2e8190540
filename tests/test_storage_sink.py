"""The run process's sink: what a node brings has arrived when the call returns."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from datalocal.errors import ClusterError, DatasetError, StorageError
from datalocal.storage.counting import ByteCounter
from datalocal.storage.sink import Sink, SinkClient

TOKEN = "not-a-secret-outside-tests"


class Kept:
    """A handler that keeps everything in memory."""

    def __init__(self) -> None:
        self.logs: list[tuple[str, str, str]] = []
        self.records: list[tuple[str, dict[str, Any]]] = []
        self.checkpoints: dict[tuple[str, str], pa.Buffer] = {}

    def log(self, arm: str, task: str, text: str) -> None:
        self.logs.append((arm, task, text))

    def record(self, kind: str, content: dict[str, Any]) -> None:
        if kind == "unwelcome":
            raise KeyError("stage")
        self.records.append((kind, content))

    def put_checkpoint(self, arm: str, name: str, content: pa.Buffer) -> None:
        self.checkpoints[(arm, name)] = content

    def get_checkpoint(self, arm: str, name: str) -> pa.Buffer:
        try:
            return self.checkpoints[(arm, name)]
        except KeyError:
            raise DatasetError(f"arm {arm} has no checkpoint {name}", "take another") from None


@pytest.fixture
def kept() -> Kept:
    return Kept()


@pytest.fixture
def sink(kept: Kept, tmp_path: Path) -> Iterator[Sink]:
    packed = tmp_path / "code.tar.gz"
    packed.write_bytes(b"packed in a file")
    sink = Sink(token=TOKEN, code={"abc": b"packed in memory" * 200_000, "def": packed}, handler=kept)
    yield sink
    sink.close()


@pytest.fixture
def counter() -> ByteCounter:
    return ByteCounter()


@pytest.fixture
def client(sink: Sink, counter: ByteCounter) -> Iterator[SinkClient]:
    with SinkClient(location=sink.location, token=TOKEN, node="n1", counter=counter) as client:
        yield client


def counted(counter: ByteCounter, class_: str) -> dict[tuple[str, str], int]:
    return {(row.source, row.destination): row.bytes for row in counter.rows() if row.class_ == class_}


def test_logs_and_records_have_arrived_when_the_call_returns(
    client: SinkClient, kept: Kept, counter: ByteCounter
) -> None:
    content = {"arm": "data-local", "steps": 3, "loss": 0.25, "used": {"a": "ü"}, "nothing": None}
    for number in range(5):
        client.record("progress", {**content, "number": number})
        assert kept.records[-1] == ("progress", {**content, "number": number})
    client.log("data-local", "train/n1", "epoch 1 ✓\nepoch 2")
    assert kept.logs == [("data-local", "train/n1", "epoch 1 ✓\nepoch 2")]
    assert counted(counter, "control")[("n1", "head")] > 5 * 60
    assert set(counted(counter, "control")) == {("n1", "head"), ("head", "n1")}


def test_records_of_many_threads_all_arrive(client: SinkClient, kept: Kept) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: client.record("rank", {"rank": number}), range(200)))
    assert sorted(content["rank"] for _, content in kept.records) == list(range(200))


@pytest.mark.parametrize("size_bytes", [0, 1, (1 << 20) + 1, 40_000_000])
def test_checkpoints_come_back_as_they_went_and_are_counted_both_ways(
    client: SinkClient, counter: ByteCounter, size_bytes: int
) -> None:
    content = pa.py_buffer(os.urandom(min(size_bytes, 1 << 20)) * (size_bytes // (1 << 20) + 1)).slice(0, size_bytes)
    client.put_checkpoint("data-local", "l0-e0-s3", content)
    assert client.get_checkpoint("data-local", "l0-e0-s3").equals(content)
    expected = {("n1", "head"): size_bytes, ("head", "n1"): size_bytes} if size_bytes else {}
    assert counted(counter, "checkpoint") == expected


def test_code_comes_from_memory_or_a_file_as_control(client: SinkClient, counter: ByteCounter) -> None:
    assert client.get_code("abc") == b"packed in memory" * 200_000
    assert client.get_code("def") == b"packed in a file"
    assert counted(counter, "control")[("head", "n1")] >= 16 * 200_000 + 16
    with pytest.raises(StorageError, match="the run has no code 'xyz'"):
        client.get_code("xyz")


def test_what_the_handler_says_reaches_the_node(client: SinkClient) -> None:
    with pytest.raises(StorageError, match="arm random has no checkpoint l0") as caught:
        client.get_checkpoint("random", "l0")
    assert caught.value.hint == "take another"
    with pytest.raises(StorageError, match="head: KeyError: 'stage'"):
        client.record("unwelcome", {})
    client.record("welcome", {})


def test_a_wrong_token_reaches_no_handler(sink: Sink, kept: Kept, counter: ByteCounter) -> None:
    with SinkClient(location=sink.location, token="wrong", node="n1", counter=counter) as client:
        for call in (
            lambda: client.record("samples", {}),
            lambda: client.put_checkpoint("a", "b", pa.py_buffer(b"x")),
            lambda: client.get_checkpoint("a", "b"),
            lambda: client.get_code("abc"),
        ):
            with pytest.raises(StorageError, match="refused the token"):
                call()
    assert (kept.records, kept.checkpoints) == ([], {})


def test_a_run_process_that_is_gone_is_said_at_once(sink: Sink, client: SinkClient) -> None:
    sink.close()
    with pytest.raises(StorageError, match="head at grpc"):
        client.record("samples", {})


def test_a_port_in_use_is_named(sink: Sink, kept: Kept) -> None:
    port = int(sink.location.rpartition(":")[2])
    with pytest.raises(ClusterError, match=f"head: cannot listen on 127.0.0.1 port {port}"):
        Sink(token=TOKEN, code={}, handler=kept, port=port)
