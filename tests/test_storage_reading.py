"""Reading: the same bytes from every source, each counted where it came from, through every way that Arrow reads."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datalocal.errors import StorageError
from datalocal.ledger.records import ByteRow, TrafficClass
from datalocal.storage.counting import ByteCounter
from datalocal.storage.reading import PIECE_BYTES
from datalocal.storage.wire import CHUNK_BYTES
from tests.stores import Stores, shard_bytes, stores

CONTENT = os.urandom(300_000)
PATH = "photos/part-0.parquet"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stores]:
    with stores(tmp_path_factory.mktemp("stores")) as made:
        for node in ("a", "b"):
            made.put(node, PATH, CONTENT)
        yield made


reads = st.lists(st.tuples(st.integers(0, len(CONTENT) + 10), st.integers(0, len(CONTENT))), min_size=1, max_size=8)


@given(reads)
def test_any_reads_give_the_same_bytes_locally_and_remotely_and_each_is_counted(
    world: Stores, sequence: list[tuple[int, int]]
) -> None:
    before = {row: world.counted("input").get(row, 0) for row in (("a", "a"), ("b", "a"))}
    own, other = world.store("a").open(PATH, ["b", "a"]), world.store("a").open(PATH, ["b"])
    expected = 0
    with own, other:
        for offset, length in sequence:
            own.seek(offset)
            other.seek(offset)
            piece = CONTENT[offset : offset + length]
            assert own.read(length) == other.read(length) == piece
            expected += len(piece)
    after = world.counted("input")
    assert {row: after.get(row, 0) - before[row] for row in before} == {("a", "a"): expected, ("b", "a"): expected}


Added = tuple[TrafficClass, str, str, int]
added = st.tuples(
    st.sampled_from(["input", "output", "control"]),
    st.sampled_from("abc"),
    st.sampled_from("abc"),
    st.integers(0, 10**12),
)


def again(rows: Iterable[ByteRow]) -> tuple[ByteRow, ...]:
    counter = ByteCounter()
    counter.add_rows(rows)
    return counter.rows()


@given(st.lists(added, max_size=30))
def test_counter_sums_conserve_and_rows_are_merged_and_sorted(additions: list[Added]) -> None:
    counter = ByteCounter()
    for class_, source, destination, count in additions:
        counter.add(class_, source, destination, count)
    rows = counter.rows()
    assert sum(row.bytes for row in rows) == sum(addition[3] for addition in additions)
    assert rows == again(rows) == again(reversed(rows)), "rows are merged, and their order does not matter"
    assert len({(row.class_, row.source, row.destination) for row in rows}) == len(rows)
    assert all(row.bytes > 0 for row in rows)


def test_counts_from_many_threads_are_not_lost() -> None:
    counter = ByteCounter()

    def count() -> None:
        for _ in range(5_000):
            counter.add("input", "a", "b", 1)

    with ThreadPoolExecutor(8) as pool:
        for _ in range(8):
            pool.submit(count)
    assert [row.bytes for row in counter.rows()] == [40_000]


@pytest.mark.parametrize("sources", [["a"], ["b"]], ids=["own replica", "over the wire"])
@pytest.mark.parametrize("pre_buffer", [True, False])
def test_parquet_row_groups_read_the_same_from_every_source(
    tmp_path: Path, sources: list[str], pre_buffer: bool
) -> None:
    content = shard_bytes(100, group=30)
    expected = pq.read_table(pa.BufferReader(content))
    with stores(tmp_path, "ab") as world:
        for node in "ab":
            world.put(node, PATH, content)
        with world.store("a").open(PATH, sources) as file, pq.ParquetFile(file, pre_buffer=pre_buffer) as parquet:
            groups = [parquet.read_row_group(i) for i in range(parquet.num_row_groups)]
        assert pa.concat_tables(groups) == expected
        [(row, count)] = world.counted("input").items()
        assert row == (sources[0], "a")
        assert count <= len(content) + 64 * 1024, "more than the footer was read twice"


def test_a_data_set_reads_through_pyarrow_dataset_and_read_table(tmp_path: Path) -> None:
    shards = {f"photos/{name}.parquet": shard_bytes(20, labels=[name] * 20) for name in ("x", "y", "z")}
    with stores(tmp_path, "ab") as world:
        for path, content in shards.items():
            world.put("b", path, content)
        files = world.store("a").filesystem({path: ["b"] for path in shards}, "staging")
        table = ds.dataset("photos", format="parquet", filesystem=files).to_table()
        assert sorted(set(table["label"].to_pylist())) == ["x", "y", "z"]
        assert table.num_rows == 60
        assert pq.read_table("photos/y.parquet", filesystem=files).num_rows == 20
        assert set(world.counted("staging")) == {("b", "a")}
        with pytest.raises(FileNotFoundError):
            pq.read_table("photos/other.parquet", filesystem=files)
        with pytest.raises(PermissionError, match="for reading"):
            files.delete_file("photos/y.parquet")


def test_ranges_larger_than_a_piece_and_a_message_arrive_whole(tmp_path: Path) -> None:
    content = os.urandom(PIECE_BYTES * 2 + CHUNK_BYTES + 17)
    with stores(tmp_path, "ab") as world:
        world.put("b", PATH, content)
        with world.store("a").open(PATH, ["b"]) as file:
            assert file.size() == len(content)
            assert file.read() == content
            assert file.read() == b""
        assert world.counted("input") == {("b", "a"): len(content)}


def test_one_store_serves_many_threads(world: Stores) -> None:
    store = world.store("c")
    barrier = threading.Barrier(6)

    def read(number: int) -> bool:
        barrier.wait()
        with store.open(PATH, ["a", "b"]) as file:
            return all(
                file.read_at(1000, offset) == CONTENT[offset : offset + 1000] for offset in range(number, 200_000, 9973)
            )

    with ThreadPoolExecutor(6) as pool:
        assert all(pool.map(read, range(6)))


def test_the_own_replica_is_taken_even_when_listed_last(world: Stores) -> None:
    with world.store("b").open(PATH, ["a", "c", "b"], "exchange") as file:
        file.read(10)
    assert world.counted("exchange") == {("b", "b"): 10}


def test_a_reader_without_a_folder_of_its_own_reads_over_the_wire(world: Stores) -> None:
    with world.store("head").open(PATH, ["a"], "checkpoint") as file:
        assert file.read(10) == CONTENT[:10]
    assert world.counted("checkpoint") == {("a", "head"): 10}


def test_an_own_replica_that_is_gone_is_read_elsewhere(tmp_path: Path) -> None:
    with stores(tmp_path, "ab") as world:
        world.put("b", PATH, CONTENT)
        with world.store("a").open(PATH, ["a", "b"]) as file:
            assert file.read() == CONTENT
        assert world.counted("input") == {("b", "a"): len(CONTENT)}


def test_an_own_replica_cut_short_while_open_is_finished_from_another(tmp_path: Path) -> None:
    with stores(tmp_path, "ab") as world:
        own = world.put("a", PATH, CONTENT)
        world.put("b", PATH, CONTENT)
        with world.store("a").open(PATH, ["a", "b"]) as file:
            head = file.read(1000)
            os.truncate(own, 50_000)
            assert head + file.read() == CONTENT


def test_a_replica_of_another_size_never_continues_a_read(tmp_path: Path) -> None:
    with stores(tmp_path, "abc") as world:
        world.put("a", PATH, CONTENT)
        world.put("b", PATH, CONTENT + b"x")
        with world.store("c").open(PATH, ["a", "b"]) as file:
            file.read(1000)
            world.servers["a"].close()
            with pytest.raises(StorageError, match=f"b: {PATH} has {len(CONTENT) + 1} bytes here.*{len(CONTENT)}"):
                file.read()


def test_when_no_source_answers_the_error_names_the_path_and_every_source(world: Stores) -> None:
    with pytest.raises(StorageError) as caught:
        world.store("a").open("photos/gone.parquet", ["a", "b", "nowhere"])
    text = str(caught.value)
    assert "photos/gone.parquet" in text
    assert "a: photos/gone.parquet: there is no such file" in text
    assert "b: photos/gone.parquet: there is no such file" in text
    assert "nowhere: no store of this name" in text


def test_no_source_at_all_is_said(world: Stores) -> None:
    with pytest.raises(StorageError, match="no node is known to hold it"):
        world.store("a").open(PATH, [])


ENDING = """
import atexit, os, threading
import pyarrow as pa
ending = threading.Event()
from datalocal.storage.random_access import RandomAccessFile

class File(RandomAccessFile):
    def _read_at(self, offset, length):
        return pa.py_buffer(bytes(length))
    def _let_go(self):
        pass

def hold():
    content = pa.PythonFile(File(8), mode="r").read_buffer()
    held.set()
    ending.wait()
    os.write(1, b"let go")
    del content

held = threading.Event()
threading.Thread(target=hold, daemon=True).start()
held.wait()
atexit.register(ending.set)  # what was registered last is called first
"""


def test_a_process_ends_after_who_still_has_bytes_let_go_of_them() -> None:
    """Arrow's threads would be stopped in the midst of it, and the process aborted with them."""
    done = subprocess.run([sys.executable, "-c", ENDING], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "let go", "")
