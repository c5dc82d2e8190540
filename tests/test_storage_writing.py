"""Writing: whole or not at all, on every node asked for, counted, and refused with numbers where there is no room."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pytest

from datalocal.errors import StorageError
from datalocal.storage.files import Folder
from tests.stores import Stores, stores

PATH = "photos-256/run-1/part-0.parquet"


@pytest.fixture
def world(tmp_path: Path) -> Iterator[Stores]:
    with stores(tmp_path) as made:
        yield made


def on_disk(world: Stores, node: str) -> bytes | None:
    file = world.root / node / "data" / PATH
    return file.read_bytes() if file.exists() else None


def left_behind(world: Stores, node: str) -> list[str]:
    return [file.name for file in (world.root / node / "data" / ".incoming").iterdir() if file.name != ".lock"]


@pytest.mark.parametrize("size_bytes", [0, 1, 3_000_000])
@pytest.mark.parametrize("kind", ["file", "buffer"])
def test_a_write_lands_on_every_node_and_is_counted_as_the_writers(
    world: Stores, tmp_path: Path, kind: str, size_bytes: int
) -> None:
    content = os.urandom(size_bytes)
    source = tmp_path / "source"
    source.write_bytes(content)
    world.store("a").write(PATH, source if kind == "file" else pa.py_buffer(content), ["a", "c"])
    assert [on_disk(world, node) for node in "abc"] == [content, None, content]
    rows = [row for row in world.counter.rows() if row.class_ == "output"]
    assert [(row.source, row.destination, row.bytes, row.origin) for row in rows] == [
        ("a", node, size_bytes, "measured.writer") for node in "ac" if size_bytes
    ]


def test_writing_again_replaces_the_file_and_counts_again(world: Stores) -> None:
    store = world.store("a")
    for content in (b"first", b"second!"):
        store.write(PATH, pa.py_buffer(content), ["a", "b"], "staging")
    assert [on_disk(world, node) for node in "ab"] == [b"second!", b"second!"]
    assert world.counted("staging") == {("a", "a"): 12, ("a", "b"): 12}


def test_a_reader_of_the_old_file_keeps_it_until_it_is_done(world: Stores) -> None:
    store = world.store("a")
    store.write(PATH, pa.py_buffer(b"old" * 1000), ["a"])
    with store.open(PATH, ["a"]) as file:
        assert file.read(3) == b"old"
        store.write(PATH, pa.py_buffer(b"new" * 1000), ["a"])
        assert file.read() == b"old" * 999


def test_concurrent_writers_of_one_path_leave_one_whole_file(world: Stores) -> None:
    contents = [bytes([number]) * 2_000_000 for number in range(6)]
    start = threading.Barrier(len(contents))

    def write(number: int) -> None:
        store = world.store("ab"[number % 2])
        start.wait()
        store.write(PATH, pa.py_buffer(contents[number]), ["a", "b"])

    with ThreadPoolExecutor(len(contents)) as pool:
        list(pool.map(write, range(len(contents))))
    for node in "ab":
        assert on_disk(world, node) in contents
        assert not left_behind(world, node)


def test_deletes_beside_writes_lose_nothing_that_was_written(world: Stores) -> None:
    """A delete removes empty parents; a write that needs them at that moment still succeeds."""
    store = world.store("b")

    def delete() -> None:
        for _ in range(100):
            store.delete("a", "photos-256/run-2")

    deleter = threading.Thread(target=delete)
    deleter.start()
    for number in range(50):
        store.write(f"photos-256/run-2/x/{number}.parquet", pa.py_buffer(b"x"), ["a"])
    deleter.join()
    store.write("photos-256/run-2/last.parquet", pa.py_buffer(b"y"), ["a"])
    assert (world.root / "a" / "data" / "photos-256/run-2/last.parquet").read_bytes() == b"y"


@pytest.mark.parametrize("node", ["a", "b"], ids=["own disk", "over the wire"])
def test_a_write_beyond_disk_bytes_is_refused_with_node_needed_and_free(tmp_path: Path, node: str) -> None:
    with stores(tmp_path, "ab", disk_bytes=10_000) as world:
        store = world.store("a")
        store.write(PATH, pa.py_buffer(bytes(4000)), [node])
        with pytest.raises(StorageError) as caught:
            store.write("photos/more.parquet", pa.py_buffer(bytes(8000)), [node])
        free = 10_000 - 4000 - (tmp_path / node / ".limits.json").stat().st_size
        assert f"{node}: disk full: photos/more.parquet needs 8000 bytes" in caught.value.message
        assert f"{free} bytes" in caught.value.message
        assert not (tmp_path / node / "data" / "photos").exists()
        assert world.counted("output") == {("a", node): 4000}, "a refused write sends no data"
        store.delete(node, "photos-256")
        store.write("photos/more.parquet", pa.py_buffer(bytes(8000)), [node])


def test_a_write_that_would_pass_the_free_floor_is_refused(tmp_path: Path) -> None:
    disk = os.statvfs(tmp_path)
    with stores(tmp_path, "ab", free_disk_floor_bytes=disk.f_blocks * disk.f_frsize) as world:
        for node in "ab":
            with pytest.raises(StorageError, match=f"{node}: disk full.* needs 1 bytes .* 0 bytes .*keeping"):
                world.store("a").write(PATH, pa.py_buffer(b"x"), [node])


def test_two_writers_cannot_both_have_the_last_room(tmp_path: Path) -> None:
    """The room of a write under way is taken, though its bytes are not there yet."""
    with stores(tmp_path, "a", disk_bytes=10_000) as world, Folder("a", tmp_path / "a").create(PATH, 6000) as first:
        with pytest.raises(StorageError, match="disk full"):
            world.store("b").write("photos/second.parquet", pa.py_buffer(bytes(6000)), ["a"])
        first.write(bytes(6000))


def test_a_disk_that_is_really_full_is_told_the_same_way_and_left_clean(tmp_path: Path) -> None:
    """A small file system whose inodes run out: its free bytes look enough, the kernel says ENOSPC."""
    mount = tmp_path / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m,nr_inodes=12", "tmpfs", str(mount)]
    try:
        mounted = os.geteuid() == 0 and subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        with stores(mount, "a") as world:
            store = world.store("head")
            with pytest.raises(StorageError, match=r"a: disk full: .* needs 8000000 bytes"):
                store.write(PATH, pa.py_buffer(bytes(8_000_000)), ["a"])
            with pytest.raises(StorageError, match="a: disk full"):
                for number in range(12):
                    store.write(f"photos/{number}.parquet", pa.py_buffer(bytes(1000)), ["a"])
            assert not left_behind(world, "a")
            assert store.datasets("a") == ["photos"]
    finally:
        subprocess.run(["umount", str(mount)], check=True)


@pytest.mark.parametrize("sent", [0, 500, 1500])
def test_a_stream_of_another_length_than_declared_is_thrown_away(world: Stores, sent: int) -> None:
    with pytest.raises(StorageError, match=f"{sent} of 1000 bytes arrived, nothing was kept"):
        world.store("b").peer("a").write(
            {"path": PATH, "bytes": 1000}, [pa.py_buffer(bytes(500))] * (sent // 500), "output"
        )
    assert on_disk(world, "a") is None
    assert not left_behind(world, "a")


def test_a_write_names_the_node_that_is_away(world: Stores) -> None:
    world.servers["b"].close()
    with pytest.raises(StorageError, match=r"b at grpc://127\.0\.0\.1:\d+ does not answer"):
        world.store("a").write(PATH, pa.py_buffer(b"x"), ["a", "b"])


def test_a_source_file_that_is_not_there_is_named(world: Stores, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="nothing-here cannot be read"):
        world.store("a").write(PATH, tmp_path / "nothing-here", ["a"])


def test_a_deleted_data_set_is_gone_with_its_empty_parents_and_nothing_else(world: Stores) -> None:
    store = world.store("a")
    for node in "ab":
        for path in ("staged/run/x/p.parquet", "staged/other/p.parquet"):
            store.write(path, pa.py_buffer(b"x"), [node])
        store.delete(node, "staged/run/x")
        store.delete(node, "staged/run/x")
        data = world.root / node / "data"
        assert not (data / "staged" / "run").exists()
        assert (data / "staged" / "other" / "p.parquet").exists()
        assert not left_behind(world, node)


@contextlib.contextmanager
def unnamed_file(folder: Path, content: bytes) -> Iterator[Path]:
    """An open file without a name, as a preprocess task makes it."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDWR | os.O_TMPFILE, 0o600)
    try:
        os.write(descriptor, content)
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def test_a_file_without_a_name_gets_one_on_its_own_node_and_is_copied_to_the_others(world: Stores) -> None:
    content = os.urandom(300_000)
    with unnamed_file(world.root / "a" / "tmp", content) as unnamed:
        number = unnamed.stat().st_ino
        world.store("a").write(PATH, unnamed, ["a", "b"])
    assert [on_disk(world, node) for node in "ab"] == [content, content]
    assert (world.root / "a" / "data" / PATH).stat().st_ino == number, "it was copied, not named"
    assert world.counted("output") == {("a", "a"): len(content), ("a", "b"): len(content)}
    assert left_behind(world, "a") == []


def test_a_file_without_a_name_counts_once_against_the_nodes_limit(tmp_path: Path) -> None:
    with stores(tmp_path, disk_bytes=300_000) as world, unnamed_file(tmp_path / "a" / "tmp", bytes(200_000)) as unnamed:
        world.store("a").write(PATH, unnamed, ["a"])
        assert on_disk(world, "a") == bytes(200_000)


def test_a_file_without_a_name_on_another_file_system_is_copied(world: Stores) -> None:
    elsewhere = Path("/dev/shm")
    if elsewhere.stat().st_dev == world.root.stat().st_dev:
        pytest.fail("this test needs /dev/shm to be a file system of its own")
    with unnamed_file(elsewhere, b"content") as unnamed:
        world.store("a").write(PATH, unnamed, ["a"])
    assert on_disk(world, "a") == b"content"


def test_a_file_without_a_name_that_is_too_large_for_the_node_is_refused_and_left_unnamed(tmp_path: Path) -> None:
    with stores(tmp_path, disk_bytes=100_000) as world, unnamed_file(tmp_path / "a" / "tmp", bytes(200_000)) as unnamed:
        with pytest.raises(StorageError, match=r"a: disk full: .* needs 200000 bytes"):
            world.store("a").write(PATH, unnamed, ["a"])
        assert on_disk(world, "a") is None
        assert left_behind(world, "a") == []
