"""Real processes that die or hang in the middle of a read or a write."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datalocal.errors import StorageError
from datalocal.storage.client import Store
from datalocal.storage.counting import ByteCounter
from datalocal.storage.files import Folder
from datalocal.storage.peer import PeerAway
from datalocal.storage.server import StoreServer
from tests.stores import TOKEN, served_elsewhere, shard_bytes, stores

PATH = "photos/part-0.parquet"


def put(root: Path, content: bytes) -> None:
    (root / "data" / "photos").mkdir(parents=True)
    (root / "data" / PATH).write_bytes(content)


def store_of(locations: dict[str, str], timeout_seconds: float = 10.0, counter: ByteCounter | None = None) -> Store:
    counter = counter if counter is not None else ByteCounter()
    return Store(
        node="reader", root=None, stores=locations, token=TOKEN, counter=counter, timeout_seconds=timeout_seconds
    )


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    """Wait for `condition`; fails when it does not come true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        threading.Event().wait(0.002)


def thread_states(pid: int) -> set[str]:
    states = set()
    for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that ended meanwhile
            states.add(stat.read_text().rpartition(")")[2].split()[0])
    return states


def left_behind(root: Path) -> list[str]:
    return [file.name for file in (root / "data" / ".incoming").iterdir() if file.name != ".lock"]


def received(counter: ByteCounter, source: str) -> int:
    return sum(row.bytes for row in counter.rows() if row.source == source and row.class_ == "input")


class Killing(ByteCounter):
    """Kills a source when it has sent its first bytes, in the reader's own thread: never too late."""

    def __init__(self, victim: subprocess.Popen[str], name: str) -> None:
        super().__init__()
        self._victim, self._name = victim, name

    def add(self, *what: Any, **more: Any) -> None:
        super().add(*what, **more)
        if received(self, self._name):
            self._victim.kill()
            self._victim.wait()


def test_a_source_killed_in_the_middle_of_a_range_is_continued_by_the_next(tmp_path: Path) -> None:
    content = os.urandom(1 << 20) * 96
    for name in "ab":
        put(tmp_path / name, content)
    with served_elsewhere("a", tmp_path / "a") as (victim, a), served_elsewhere("b", tmp_path / "b") as (_, b):
        counter = Killing(victim, "a")
        with store_of({"a": a, "b": b}, counter=counter) as store, store.open(PATH, ["a", "b"]) as file:
            read = file.read_buffer()
        assert read.equals(pa.py_buffer(content))
        assert received(counter, "a") > 0 and received(counter, "b") > 0
        assert received(counter, "a") + received(counter, "b") == len(content), (
            "the second source went on at the same byte"
        )


def test_parquet_reads_go_on_when_their_source_dies_between_row_groups(tmp_path: Path) -> None:
    content = shard_bytes(200, group=20)
    for name in "ab":
        put(tmp_path / name, content)
    with served_elsewhere("a", tmp_path / "a") as (victim, a), served_elsewhere("b", tmp_path / "b") as (_, b):
        store = store_of({"a": a, "b": b})
        with store, store.open(PATH, ["a", "b"]) as file, pq.ParquetFile(file) as parquet:
            first = parquet.read_row_group(0)
            victim.kill()
            victim.wait()
            rest = parquet.read_row_groups(range(1, 10))
        assert pa.concat_tables([first, rest]) == pq.read_table(pa.BufferReader(content))


def test_when_the_only_source_dies_parquet_raises_our_error_quickly(tmp_path: Path) -> None:
    put(tmp_path / "a", shard_bytes(200, group=20))
    with served_elsewhere("a", tmp_path / "a") as (victim, a):
        store = store_of({"a": a})
        with store, store.open(PATH, ["a"]) as file, pq.ParquetFile(file) as parquet:
            victim.kill()
            victim.wait()
            began = time.monotonic()
            with pytest.raises(StorageError, match=f"{PATH} cannot be read.*a at grpc"):
                parquet.read_row_group(1)
            assert time.monotonic() - began < 5


def stop_all_threads(pid: int) -> None:
    """SIGSTOP, and wait until it has come to every thread: one that still runs answers."""
    os.kill(pid, signal.SIGSTOP)
    until(lambda: thread_states(pid) == {"T"}, seconds=30)


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="whether every thread has stopped is read from /proc")
def test_a_source_that_hangs_costs_its_timeout_once(tmp_path: Path) -> None:
    content = os.urandom(100_000)
    for name in "ab":
        put(tmp_path / name, content)
    with served_elsewhere("a", tmp_path / "a") as (hung, a), served_elsewhere("b", tmp_path / "b") as (_, b):
        store = store_of({"a": a, "b": b}, timeout_seconds=6.0)
        with store, store.open(PATH, ["a", "b"]) as file:
            stop_all_threads(hung.pid)
            began = time.monotonic()
            assert file.read(1000) == content[:1000]
            assert time.monotonic() - began > 5.9
            began = time.monotonic()
            assert all(
                file.read_at(1000, offset) == content[offset : offset + 1000] for offset in range(0, 90_000, 10_000)
            )
            with store.open(PATH, ["a", "b"]) as again:
                assert again.read() == content
            assert time.monotonic() - began < 5.9, "the source that hung was tried first again"


def test_a_write_whose_server_dies_half_way_leaves_no_visible_file_and_is_tidied_at_the_next_start(
    tmp_path: Path,
) -> None:
    root = tmp_path / "a"
    with served_elsewhere("a", root) as (victim, location):
        store = store_of({"a": location})

        def chunks() -> Iterator[pa.Buffer]:
            yield pa.py_buffer(bytes(1 << 20))
            until(lambda: bool(left_behind(root)))
            victim.kill()
            victim.wait()
            yield pa.py_buffer(bytes(1 << 20))

        with store, pytest.raises(PeerAway, match="a at grpc"):
            store.peer("a").write({"path": PATH, "bytes": 4 << 20}, chunks(), "output")
    assert left_behind(root)
    assert not (root / "data" / PATH).exists()
    StoreServer(node="a", root=root, token=TOKEN).close()
    assert not left_behind(root)


_HALF_A_WRITE = """
import sys, pyarrow as pa
from datalocal.storage.client import Store
from datalocal.storage.counting import ByteCounter

def chunks():
    yield pa.py_buffer(bytes(1 << 20))
    print("half", flush=True)
    sys.stdin.read()

store = Store(node="writer", root=None, stores={"a": sys.argv[1]}, token=sys.argv[2], counter=ByteCounter())
store.peer("a").write({"path": sys.argv[3], "bytes": 2 << 20}, chunks(), "output")
"""


def test_a_write_whose_client_is_killed_half_way_leaves_nothing(tmp_path: Path) -> None:
    with stores(tmp_path, "a") as world:
        writer = subprocess.Popen(
            [sys.executable, "-c", _HALF_A_WRITE, world.locations["a"], TOKEN, PATH],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "half\n"
            until(lambda: bool(left_behind(tmp_path / "a")))
        finally:
            writer.kill()
            writer.communicate()
        until(lambda: not left_behind(tmp_path / "a"))
        assert not (tmp_path / "a" / "data" / PATH).exists()


def test_a_start_of_the_server_spares_what_a_living_writer_holds(tmp_path: Path) -> None:
    folder = Folder("a", tmp_path / "a")
    with folder.create(PATH, 3) as file:
        StoreServer(node="a", root=tmp_path / "a", token=TOKEN).close()
        file.write(b"abc")
    assert (tmp_path / "a" / "data" / PATH).read_bytes() == b"abc"


def test_a_process_that_never_closes_its_server_still_ends(tmp_path: Path) -> None:
    code = "import sys, pathlib\nfrom datalocal.storage.server import StoreServer\n"
    code += "server = StoreServer(node='a', root=pathlib.Path(sys.argv[1]), token='t')"
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], check=True, timeout=60)
