"""Preprocessing a shard, through real stores: what comes out, in which order, and what is counted and told."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datalocal.errors import StorageError, TaskError
from datalocal.tasks import image_column
from datalocal.tasks.code import load_target
from datalocal.tasks.images import decode, encode_jpeg
from datalocal.tasks.staging import run_staging
from datalocal.tasks.train.columns import Arrays, images_of
from tests.preprocess_bench import Bench, bench, photos, picture


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Bench]:
    with bench(tmp_path) as made:
        yield made


def sizes(table: pa.Table) -> list[tuple[int, ...]]:
    return [decode(value, max_pixels=10**6).shape for value in table.column("image").to_pylist()]


def test_every_row_comes_out_once_in_order_with_its_other_columns(here: Bench) -> None:
    here.shard(photos(25, split=["train"] * 20 + ["test"] * 5))
    record, table = here.run()
    assert sizes(table) == [(16, 16, 3)] * 25
    before = photos(25)
    assert table.column("path").to_pylist() == before.column("path").to_pylist()
    assert table.column("label").to_pylist() == before.column("label").to_pylist()
    assert table.column("split").to_pylist() == ["train"] * 20 + ["test"] * 5
    assert table.schema.metadata[b"datalocal"] == b'{"classes": ["x", "y", "z"]}'
    for row in (0, 13, 24):
        want = encode_jpeg(decode(picture(row), max_pixels=10**6)[::2, ::2], 90)
        assert table.column("image")[row].as_py() == want
    assert (record.images_in, record.images_out, record.damaged) == (25, 25, ())
    assert (record.node, record.output_nodes, record.executor) == ("a", ("a",), "test")
    assert record.output_bytes == here.output().stat().st_size
    assert all(record.seconds_by_step[step] > 0 for step in ("read", "decode", "transform", "encode", "write"))
    assert "25 of 25 images" in here.kept.logs["preprocess-part-0.parquet"]


def test_equal_input_gives_equal_bytes(here: Bench) -> None:
    here.shard(photos())
    digests = set()
    for _ in range(2):
        here.run()
        digests.add(hashlib.sha256(here.output().read_bytes()).hexdigest())
    assert len(digests) == 1


def test_reading_from_another_node_moves_exactly_the_bytes_of_a_local_read(here: Bench) -> None:
    here.shard(photos(60))
    local, _ = here.run(node="a")
    remote, _ = here.run(node="b")

    def input_bytes(record: Any) -> dict[tuple[str, str], int]:
        return {(row.source, row.destination): row.bytes for row in record.bytes if row.class_ == "input"}

    assert input_bytes(local) == {("a", "a"): input_bytes(remote)[("a", "b")]}
    assert here.output("a").read_bytes() == here.output("b").read_bytes()
    size = (here.root / "a" / "data" / "photos" / "part-0.parquet").stat().st_size
    assert input_bytes(remote)[("a", "b")] <= size + 2**16, "the input is read once"


def test_the_output_lies_on_every_planned_node(here: Bench) -> None:
    here.shard(photos())
    record, _ = here.run(outputs=("a", "b"))
    assert here.output("a").read_bytes() == here.output("b").read_bytes()
    written = {(row.source, row.destination): row.bytes for row in record.bytes if row.class_ == "output"}
    assert written == {("a", "a"): record.output_bytes, ("a", "b"): record.output_bytes}


def test_damaged_images_are_left_out_and_listed_with_their_row(here: Bench) -> None:
    images: list[bytes | None] = [picture(row) for row in range(25)]
    images[3], images[11], images[24] = images[3][:-100], None, b""  # type: ignore[index]
    here.shard(photos(25, image=pa.array(images, pa.large_binary())))
    record, table = here.run()
    assert [(image.row, image.path) for image in record.damaged] == [(3, "p/3.jpg"), (11, "p/11.jpg"), (24, "p/24.jpg")]
    assert "Premature end" in record.damaged[0].problem
    assert record.images_in == 25 and record.images_out == table.num_rows == 22
    assert table.column("path").to_pylist() == [f"p/{row}.jpg" for row in range(25) if row not in (3, 11, 24)]
    log = here.kept.logs["preprocess-part-0.parquet"]
    assert log.count("left out") == 3 and "p/11.jpg" in log


def test_damage_stops_the_task_when_the_job_says_so(here: Bench) -> None:
    here.shard(photos(5, image=pa.array([picture(0), b"nothing", picture(2), picture(3), picture(4)], pa.binary())))
    with pytest.raises(TaskError, match=r"row 1 of part-0.parquet p/1.jpg is damaged: not an image"):
        here.run(damaged="fail")
    assert not here.output().exists()


def test_a_shard_of_nothing_but_damage_gives_an_empty_shard(here: Bench) -> None:
    here.shard(photos(3, image=pa.array([b"x"] * 3, pa.binary())))
    record, table = here.run()
    assert (record.images_out, table.num_rows, len(record.damaged)) == (0, 0, 3)
    assert table.schema.names == ["image", "label", "path"]


def test_a_picture_over_the_pixel_limit_is_damage(here: Bench) -> None:
    here.shard(photos(2, image=pa.array([picture(0), picture(1, side=64)], pa.binary())))
    record, _ = here.run(max_pixels=2000)
    assert [image.row for image in record.damaged] == [1] and "4096 pixels" in record.damaged[0].problem


@pytest.mark.parametrize("order", [("bytes", "path"), ("path", "bytes")])
def test_the_struct_layout_is_read_in_either_order_and_keeps_its_paths(here: Bench, order: tuple[str, str]) -> None:
    values = [{"bytes": picture(row) if row else None, "path": f"in/{row}.jpg"} for row in range(6)]
    kind = pa.struct([(name, {"bytes": pa.binary(), "path": pa.string()}[name]) for name in order])
    here.shard(photos(6, image=pa.array(values, kind)).drop_columns(["path"]))
    record, table = here.run()
    assert record.damaged[0].path == "in/0.jpg" and record.damaged[0].problem == "no bytes"
    assert table.column("path").to_pylist() == [f"in/{row}.jpg" for row in range(1, 6)]
    assert table.schema.field("image").type == pa.binary()


def test_a_class_is_made_once_and_called_for_every_batch(here: Bench) -> None:
    here.shard(photos())
    record, table = here.run("Bright", arguments={"add": 255})
    assert record.images_out == 25
    assert all(decode(value, max_pixels=10**6).min() > 240 for value in table.column("image").to_pylist())


def test_bytes_are_stored_as_they_are(here: Bench) -> None:
    here.shard(photos(6))
    _, table = here.run("keep", arguments={"prefix": "made"})
    assert table.column("image").to_pylist() == [b"made\x20"] * 6


@pytest.mark.parametrize("shape", [[4], [2, 3]])
def test_an_array_becomes_a_column_of_features_that_training_reads_in_its_shape(here: Bench, shape: list[int]) -> None:
    here.shard(photos(9, image=pa.array([picture(0), b"damaged", *(picture(row) for row in range(2, 9))], pa.binary())))
    here.run("features", arguments={"shape": shape})
    found = images_of(pq.ParquetFile(here.output()).read_row_group(0).column("image"))
    assert isinstance(found, Arrays) and found.values.shape == (8, *shape) and found.values.dtype == np.float32
    means = [decode(picture(row), max_pixels=10**6).mean() for row in range(9) if row != 1]
    assert np.allclose(found.values.reshape(8, -1)[:, 0], means, rtol=1e-5)


@pytest.mark.parametrize(
    ("transform", "says"),
    [
        ("lie", "returned 3 results for 4 images"),
        ("words", "returned str for one image"),
        ("broken", "raised ArithmeticError: no such light"),
        ("halv", "has no 'halv'"),
    ],
)
def test_what_the_transform_does_wrong_is_said_with_the_users_frames_only(
    here: Bench, transform: str, says: str
) -> None:
    here.shard(photos(8))
    with pytest.raises(TaskError, match=says) as caught:
        here.run(transform)
    assert caught.value.node == "a"
    assert "datalocal/tasks" not in caught.value.trace
    if transform == "broken":
        assert "in broken" in caught.value.trace and "in inner" in caught.value.trace
    if transform == "halv":
        assert "half" in caught.value.hint
    assert not here.output().exists()


def test_a_missing_column_names_those_that_are_there(here: Bench) -> None:
    here.shard(photos(2).rename_columns(["picture", "label", "path"]))
    with pytest.raises(TaskError, match=r"has no column 'image'; its columns are picture, label, path"):
        here.run()


def test_a_column_of_numbers_is_no_image(here: Bench) -> None:
    here.shard(photos(2, image=pa.array([1, 2])))
    with pytest.raises(TaskError, match="encoded images are binary"):
        here.run()


def test_a_source_that_is_gone_is_a_storage_error_to_be_tried_elsewhere(here: Bench) -> None:
    with pytest.raises(StorageError, match="no such file"):
        here.run()


def test_nothing_is_left_in_the_scratch_folder(here: Bench) -> None:
    here.shard(photos())
    here.run()
    assert list((here.root / "a" / "tmp").iterdir()) == []


def test_row_groups_of_one_split_stay_apart_and_mixed_ones_do_not(here: Bench) -> None:
    table = photos(25, split=["train"] * 14 + ["val"] * 6 + ["train", "val"] * 2 + ["val"])
    here.shard(table)
    with pq.ParquetWriter(here.root / "a" / "data" / "photos" / "part-0.parquet", table.schema) as writer:
        for start, rows in ((0, 9), (9, 5), (14, 6), (20, 4), (24, 1)):
            writer.write_table(table.slice(start, rows), row_group_size=rows)
    _, made = here.run()
    assert made.column("path").to_pylist() == table.column("path").to_pylist()
    footer = pq.ParquetFile(here.output()).metadata
    assert [footer.row_group(i).num_rows for i in range(footer.num_row_groups)] == [14, 11]


def test_row_groups_of_the_output_have_100_to_500_rows(here: Bench) -> None:
    here.shard(photos(700, image=pa.array([picture(row % 5, side=16) for row in range(700)], pa.binary())), group=64)
    here.run("keep", arguments={"prefix": "p"})
    footer = pq.ParquetFile(here.output()).metadata
    assert [footer.row_group(i).num_rows for i in range(footer.num_row_groups)] == [500, 200]
    image = footer.row_group(0).column(0)
    assert image.compression == "UNCOMPRESSED" and not image.has_dictionary_page


def test_a_staged_shard_is_the_source_byte_for_byte_and_both_sides_count(here: Bench) -> None:
    here.shard(photos())
    record = run_staging(here.staging("b"), here.contexts["b"])
    source = here.root / "a" / "data" / "photos" / "part-0.parquet"
    copy = here.root / "b" / "data" / "staged" / "run" / "photos" / "part-0.parquet"
    size = source.stat().st_size
    assert copy.read_bytes() == source.read_bytes()
    staged = {(row.source, row.destination, row.origin): row.bytes for row in record.bytes if row.class_ == "staging"}
    assert staged == {("a", "b", "measured.reader"): size, ("b", "b", "measured.writer"): size}
    assert (record.output_bytes, record.output_nodes, record.reason) == (size, ("b",), "told to")


def test_staging_what_is_not_there_leaves_nothing(here: Bench) -> None:
    with pytest.raises(StorageError, match="no such file"):
        run_staging(here.staging("b"), here.contexts["b"])
    assert not (here.root / "b" / "data" / "staged").exists()


KEEPER = """
kept = []

def hold(images, device):
    kept.extend(images)
    return images
"""


def test_images_that_a_transform_keeps_are_never_overwritten(tmp_path: Path) -> None:
    with bench(tmp_path, code={"keeper.py": KEEPER}) as here:
        here.shard(photos(40))
        here.run("keeper:hold")
        kept = load_target("keeper:kept", here.contexts["a"].root / "code" / here.wiring.code)
        want = {decode(picture(row), max_pixels=10**6).tobytes() for row in range(40)}
        assert {image.tobytes() for image in kept} == want


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()])
@given(
    values=st.lists(st.none() | st.binary(max_size=20), max_size=12), cut=st.integers(0, 12), group=st.integers(1, 5)
)
def test_views_of_an_image_column_are_its_values(
    kind: pa.DataType, values: list[bytes | None], cut: int, group: int
) -> None:
    chunks = [pa.array(values[at : at + group], kind) for at in range(0, len(values), group)]
    table = pa.table({"image": pa.chunked_array(chunks, kind)}).slice(cut)
    found = image_column.images_of(table, "image").encoded
    assert [None if view is None else view.to_pybytes() for view in found] == values[cut:]
