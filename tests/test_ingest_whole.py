"""An ingest writes a whole data set or none: sizes, replicas, bytes, damage, repetition, and dying half way."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datalocal.catalog.probe import probe
from datalocal.errors import DatasetError, PlacementError, StorageError
from datalocal.ingest.target import UNFINISHED
from datalocal.spec.job import Columns
from datalocal.storage.client import Store
from tests.ingesting import NODES, World, picture, world, write_files
from tests.stores import TOKEN


def folder(root: Path, images: int, side: int = 24) -> Path:
    return write_files(root, {f"class{i % 3}/{i:04d}.jpg": picture(i, side) for i in range(images)})


def digests(small: World, dataset: str = "photos") -> dict[str, dict[str, str]]:
    return {
        key: {node: hashlib.sha256(file.read_bytes()).hexdigest() for node, file in nodes.items()}
        for key, nodes in small.files(dataset).items()
    }


def test_shards_stay_below_a_block_and_groups_are_readable(tmp_path: Path) -> None:
    """Each shard is below the block size, uncompressed, and as full as its row groups allow; no image is lost."""
    source = folder(tmp_path / "src", 300, 40)
    with world(tmp_path, block_bytes=1 << 18) as small:
        report = small.ingest(source)
        files = small.files()
        assert sorted(row["path"] for row in small.rows()) == sorted(
            path.relative_to(source).as_posix() for path in source.rglob("*.jpg")
        )
    sizes = {key: {file.stat().st_size for file in nodes.values()} for key, nodes in files.items()}
    assert report.images == 300
    assert report.shards == len(files) > 2
    assert list(files) == [f"part-{i:05d}.parquet" for i in range(len(files))]
    assert all(len(size) == 1 and max(size) <= 1 << 18 for size in sizes.values())
    assert report.bytes == sum(max(size) for size in sizes.values())
    assert all(max(size) > 0.9 * (1 << 18) for size in list(sizes.values())[:-1])
    for nodes in files.values():
        footer = pq.ParquetFile(next(iter(nodes.values()))).metadata
        columns = [footer.row_group(0).column(i) for i in range(footer.num_columns)]
        assert {column.compression for column in columns} == {"UNCOMPRESSED"}
        assert not any(column.has_dictionary_page for column in columns)


def test_smaller_shards_are_more_shards_and_larger_ones_than_a_block_are_refused(tmp_path: Path) -> None:
    source = folder(tmp_path / "src", 300, 40)
    with world(tmp_path, block_bytes=1 << 20) as small:
        whole = small.ingest(source, "whole")
        parted = small.ingest(source, "parted", shard_bytes=1 << 17)
        assert whole.images == parted.images == 300
        assert parted.shards > whole.shards
        sizes = [file.stat().st_size for nodes in small.files("parted").values() for file in nodes.values()]
        assert max(sizes) <= 1 << 17
        with pytest.raises(DatasetError, match="shards of 1048577 bytes do not fit into the blocks"):
            small.ingest(source, "huge", shard_bytes=(1 << 20) + 1)


def test_row_groups_hold_100_to_500_images(tmp_path: Path) -> None:
    """Groups close at 500 images; only the last of the data set is smaller."""
    with world(tmp_path, block_bytes=1 << 24) as small:
        small.ingest(folder(tmp_path / "src", 1150, 8))
        (nodes,) = small.files().values()
    footer = pq.ParquetFile(next(iter(nodes.values()))).metadata
    assert [footer.row_group(i).num_rows for i in range(footer.num_row_groups)] == [500, 500, 150]


def test_rows_that_train_and_rows_that_validate_share_shards_and_no_row_group(tmp_path: Path) -> None:
    """Whoever trains need not read the others, and no node holds validation alone."""
    files = {
        f"{'val' if i % 5 == 0 else 'train'}/class{i % 3}/{i:04d}.jpg": picture(i, 8 if i < 1000 else 40)
        for i in range(1150)
    }
    with world(tmp_path, block_bytes=1 << 19) as small:
        report = small.ingest(write_files(tmp_path / "src", files))
        assert report.images == len(small.rows()) == 1150
        shards = [pq.ParquetFile(next(iter(nodes.values()))) for nodes in small.files().values()]
        assert len(shards) > 1
        for shard in shards:
            splits = [shard.read_row_group(i)["split"].to_pylist() for i in range(shard.num_row_groups)]
            assert all(len(set(each)) == 1 for each in splits)
            told = [split for each in splits for split in each]
            assert 0.1 < told.count("val") / len(told) < 0.3, "as many in each shard as in all"
        assert all(file.stat().st_size <= 1 << 19 for nodes in small.files().values() for file in nodes.values())
        groups = [shard.metadata.row_group(i).num_rows for shard in shards for i in range(shard.num_row_groups)]
        assert max(groups) > 100 and len(groups) <= 2 * (1150 // 100 + len(shards))


def test_a_column_split_of_many_values_divides_no_row_group(tmp_path: Path) -> None:
    """Some name another thing so: a row group per value would be a row group per image."""
    table = pa.table({"image": [picture(i, 8) for i in range(60)], "split": [f"piece-{i}" for i in range(60)]})
    (tmp_path / "src").mkdir()
    pq.write_table(table, tmp_path / "src" / "a.parquet")
    with world(tmp_path, block_bytes=1 << 20) as small:
        small.ingest(tmp_path / "src")
        (nodes,) = small.files().values()
        assert pq.ParquetFile(next(iter(nodes.values()))).num_row_groups == 1


def test_row_groups_fill_a_block_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a block takes almost two row groups of the usual size, it takes two that are a little smaller, not one."""
    for module in ("datalocal.ingest.shards", "datalocal.tasks.shard_file"):
        monkeypatch.setattr(f"{module}.GROUP_BYTES", 1 << 18)  # 16 MiB would be slow to fill
    with world(tmp_path, block_bytes=1 << 19) as small:
        small.ingest(folder(tmp_path / "src", 600, 32), validate=False)
        files = [next(iter(nodes.values())) for nodes in small.files().values()]
    sizes = [file.stat().st_size for file in files]
    assert len(sizes) > 2
    assert max(sizes) <= 1 << 19
    assert min(sizes[:-1]) > 0.93 * (1 << 19)
    for file in files[:-1]:
        footer = pq.ParquetFile(file).metadata
        assert [100 <= footer.row_group(i).num_rows <= 500 for i in range(footer.num_row_groups)] == [True, True]


def test_replicas_are_equal_and_in_two_racks(tmp_path: Path) -> None:
    """Each shard lies on two storage nodes of different racks, byte for byte the same; bytes are counted from the head."""
    with world(tmp_path) as small:
        report = small.ingest(folder(tmp_path / "src", 200))
        found = digests(small)
        counted = small.stores.counted("output")
    for nodes in found.values():
        assert len(nodes) == 2 and len(set(nodes.values())) == 1
        assert {small.cluster.rack_of(node) for node in nodes} == {"r1", "r2"}
    assert sum(counted.values()) == 2 * report.bytes
    assert {source for source, _ in counted} == {"head"}


def test_the_same_source_and_seed_give_the_same_bytes(tmp_path: Path) -> None:
    """Shards are a function of source and seed: names, places and bytes."""
    source = folder(tmp_path / "src", 150)
    found = []
    for number, seed in enumerate((1, 1, 2)):
        with world(tmp_path / str(number)) as small:
            small.ingest(source, seed=seed)
            found.append(digests(small))
    assert found[0] == found[1] != found[2]


def test_damaged_images_are_listed_and_left_out(tmp_path: Path) -> None:
    """Truncated, empty, no image, too large for the limit or for a block: each told with its path, the others are there."""
    source = folder(tmp_path / "src", 20)
    broken = {
        "class0/cut.jpg": picture(99)[:-200],
        "class0/empty.png": b"",
        "class1/text.jpg": b"this is no picture",
        "class1/bomb.png": picture(98, 600, ".png"),
        "class2/huge.bmp": picture(97, 200, ".bmp"),
    }
    write_files(source, broken)
    with world(tmp_path) as small:
        report = small.ingest(source, max_pixels=100_000)
        assert {row["path"] for row in small.rows()} & broken.keys() == set()
    problems = {bad.path: bad.problem for bad in report.damaged}
    assert report.images == 20
    assert problems.keys() == broken.keys()
    assert "Premature end" in problems["class0/cut.jpg"]
    assert problems["class0/empty.png"] == "no bytes"
    assert "not an image" in problems["class1/text.jpg"]
    assert "360000 pixels" in problems["class1/bomb.png"]
    assert "fit into a block" in problems["class2/huge.bmp"]


def test_without_validation_only_headers_are_read(tmp_path: Path) -> None:
    """`validate=False` finds what headers tell, and takes what only decoding would find."""
    source = write_files(
        folder(tmp_path / "src", 3), {"class0/cut.jpg": picture(99)[:-200], "class0/big.jpg": picture(1, 400)}
    )
    with world(tmp_path) as small:
        report = small.ingest(source, validate=False, max_pixels=100_000)
    assert report.images == 4
    assert [bad.path for bad in report.damaged] == ["class0/big.jpg"]


def test_nothing_usable_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    """All images damaged: told with an example; no empty data set."""
    source = write_files(tmp_path / "src", {"a/1.jpg": b"", "a/2.jpg": b"x"})
    with world(tmp_path) as small:
        with pytest.raises(DatasetError, match="no image that can be used"):
            small.ingest(source)
        assert small.files() == {}


def test_progress_is_told(tmp_path: Path) -> None:
    """Images done and images in all, damaged ones included, up to the end."""
    told: list[tuple[int, int]] = []
    source = write_files(folder(tmp_path / "src", 9), {"class0/bad.jpg": b""})
    with world(tmp_path) as small:
        small.ingest(source, progress=lambda done, total: told.append((done, total)))
    assert told == [(i, 10) for i in range(1, 11)]


def test_a_data_set_that_is_there_is_not_replaced_unasked(tmp_path: Path) -> None:
    """Refused, also inside or above another one; with `overwrite` nothing of the old one is left on any node."""
    first, second = folder(tmp_path / "one", 300), folder(tmp_path / "two", 20)
    with world(tmp_path) as small:
        small.ingest(first)
        before = digests(small)
        for name, message in (
            ("photos", "is there already"), ("photos/x", "would lie inside"), ("Photos/../x", "cannot be the name")
        ):  # fmt: skip
            with pytest.raises(DatasetError, match=message):
                small.ingest(second, name)
        assert digests(small) == before
        (small.stores.root / "central/data/photos").mkdir(parents=True)
        key, nodes = next(iter(small.files().items()))
        (small.stores.root / "central/data/photos" / key).write_bytes(next(iter(nodes.values())).read_bytes())
        with pytest.raises(DatasetError, match="cannot be replaced while b is not up"):
            small.ingest(second, overwrite=True, alive=["a", "c", "d", "central"])
        report = small.ingest(second, overwrite=True)
        assert len(small.rows()) == report.images == 20
        small.ingest(second, "photos-2/inner")
        with pytest.raises(DatasetError, match=r"is there already \(as photos-2/inner\)"):
            small.ingest(second, "photos-2")


def test_more_replicas_than_nodes_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    """With the numbers, even before the source is looked for."""
    with world(tmp_path) as small, pytest.raises(PlacementError, match=r"2 replicas need .* there are 1 of 4"):
        small.ingest(tmp_path / "nowhere", alive=["a", "central"])


class _Dying(Store):
    """Fails at its n-th write of a shard, as a store does whose node goes away."""

    after = 2

    def write(self, path: str, content: Any, nodes: Any, class_: Any = "output") -> None:
        if "part-" in path:
            if self.after == 0:
                raise StorageError("b is away")
            self.after -= 1
        super().write(path, content, nodes, class_)


def test_a_failure_leaves_nothing_and_can_be_repeated(tmp_path: Path) -> None:
    """When a store fails half way, what was written is withdrawn everywhere; the next try works."""
    source = folder(tmp_path / "src", 300)
    with world(tmp_path) as small:
        dying = _Dying(node="head", root=None, stores=small.stores.locations, token=TOKEN, counter=small.stores.counter)
        from datalocal.ingest import ingest

        with dying, pytest.raises(StorageError, match="b is away"):
            ingest(source, "photos", dying, small.cluster, alive=NODES)
        assert small.files() == {}
        assert small.ingest(source).images == 300


_DIES = """
import os, signal, sys
from pathlib import Path
from datalocal.ingest import ingest
from datalocal.spec.cluster import Cluster
from datalocal.storage.client import Store
from datalocal.storage.counting import ByteCounter

source, cluster, token, *pairs = sys.argv[1:]
store = Store(node="head", root=None, stores=dict(pair.split("=") for pair in pairs), token=token, counter=ByteCounter())

def progress(done, total):
    if done == 250:
        os.kill(os.getpid(), signal.SIGKILL)

ingest(Path(source), "photos", store, Cluster.model_validate_json(cluster), alive=["a", "b", "c", "d"], progress=progress)
"""


def test_an_ingest_that_is_killed_is_never_taken_for_a_whole_one(tmp_path: Path) -> None:
    """After SIGKILL some shards lie there: the catalog refuses the data set and says why; a second ingest just works."""
    source = folder(tmp_path / "src", 300)
    with world(tmp_path) as small:
        pairs = [f"{node}={at}" for node, at in small.stores.locations.items()]
        done = subprocess.run(
            [sys.executable, "-c", _DIES, str(source), small.cluster.model_dump_json(), TOKEN, *pairs],
            cwd=Path(__file__).parents[1],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
            check=False,
        )
        assert done.returncode == -signal.SIGKILL
        left = small.files()
        assert UNFINISHED in left and len(left) > 1
        assert set(left[UNFINISHED]) == set(NODES)
        with pytest.raises(DatasetError, match=UNFINISHED) as told:
            probe(small.stores.store(), small.cluster, "photos", Columns(), NODES)
        assert "datalocal ingest" in str(told.value)
        report = small.ingest(source)
        assert len(small.rows()) == report.images == 300
        assert len(probe(small.stores.store(), small.cluster, "photos", Columns(), NODES)) == report.shards


def test_two_ingests_of_one_name_do_not_mix(tmp_path: Path) -> None:
    """The one that begins later takes the data set; the other one notices, fails, and leaves the later one alone."""
    first, second = folder(tmp_path / "one", 300), folder(tmp_path / "two", 40)
    with world(tmp_path) as small:

        def meanwhile(done: int, _: int) -> None:
            if done == 290:
                assert small.ingest(second).images == 40

        with pytest.raises(StorageError, match="another ingest"):
            small.ingest(first, progress=meanwhile)
        assert sorted(row["path"] for row in small.rows()) == sorted(
            path.relative_to(second).as_posix() for path in second.rglob("*.jpg")
        )
