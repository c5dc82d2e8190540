"""Listings: footers and labels read where the files lie; whatever lies there, a listing comes back."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datalocal.spec.job import Columns
from datalocal.storage import listing as listing_module
from datalocal.storage.listing import Listing, ShardListing
from tests.stores import Stores, shard_bytes, stores


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stores]:
    with stores(tmp_path_factory.mktemp("stores"), "a") as made:
        yield made


def listed(world: Stores, dataset: str, columns: Columns | None = None) -> Listing:
    """As the wire tells it, after checking that the node itself says the same."""
    columns = columns or Columns()
    remote = world.store("head").list("a", dataset, columns)
    assert remote == world.store("a").list("a", dataset, columns)
    return remote


def one(world: Stores, name: str, content: bytes, columns: Columns | None = None) -> ShardListing:
    world.put("a", f"{name}/part.parquet", content)
    [shard] = listed(world, name, columns).shards
    return shard


@settings(max_examples=20)
@given(
    labels=st.one_of(
        st.lists(st.integers(-5, 5), min_size=1, max_size=30),
        st.lists(st.sampled_from(["cat", "dog", "", "ü"]), min_size=1, max_size=30),
    ),
    group=st.integers(1, 10),
)
def test_rows_and_labels_are_counted_as_they_are(world: Stores, labels: list[Any], group: int) -> None:
    content = shard_bytes(len(labels), group=group, labels=labels)
    shard = one(world, "counted", content)
    assert shard.error == ""
    assert shard.bytes == len(content)
    assert sum(shard.group_rows) == len(labels)
    assert all(rows <= group for rows in shard.group_rows)
    assert 0 < sum(shard.group_bytes) < len(content)
    assert shard.label_counts == {str(label): count for label, count in Counter(labels).items()}
    assert shard.label_kind == ("integer" if isinstance(labels[0], int) else "string")


@pytest.mark.parametrize(
    ("label", "counts", "kind"),
    [
        (pa.array(["x", "y", "x"]).dictionary_encode(), {"x": 2, "y": 1}, "string"),
        (pa.array(["x", "y", "x"], pa.large_string()), {"x": 2, "y": 1}, "string"),
        (pa.array([True, False, True]), {"1": 2, "0": 1}, "integer"),
        (pa.array([7, 8, 7], pa.uint8()), {"7": 2, "8": 1}, "integer"),
        (pa.array([7, None, 7], pa.int16()), {"7": 2}, "integer"),
    ],
    ids=["dictionary", "large string", "bool", "uint8", "with null"],
)
def test_the_label_types_that_people_use(world: Stores, label: pa.Array, counts: dict[str, int], kind: str) -> None:
    shard = one(world, "label-types", shard_bytes(3, label=label))
    assert (shard.label_counts, shard.label_kind) == (counts, kind)
    assert shard.unlabelled_rows == label.null_count


def test_a_label_column_of_another_type_is_a_problem_in_words(world: Stores) -> None:
    shard = one(world, "float-labels", shard_bytes(2, label=pa.array([0.5, 1.0])))
    assert shard.label_problem == "has the type double; labels are integers or strings"
    assert shard.label_kind is None


IMAGES = {
    "binary": pa.array([b"x", b"y"]),
    "large binary": pa.array([b"x", b"y"], pa.large_binary()),
    "struct": pa.array([{"bytes": b"x", "path": "p"}, {"bytes": None, "path": "q"}]),
    "struct the other way round": pa.array(
        [{"path": "p", "bytes": b"x"}] * 2, pa.struct([("path", pa.string()), ("bytes", pa.binary())])
    ),
    "fixed-size list": pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(8, np.uint8)), 4),
    "tensor": pa.FixedShapeTensorArray.from_numpy_ndarray(np.zeros((2, 2, 2), np.float32)),
}


@pytest.mark.parametrize("kind", IMAGES)
def test_image_columns_of_every_kind_are_recognised(world: Stores, kind: str) -> None:
    shard = one(world, "images", shard_bytes(2, image=IMAGES[kind]))
    assert (shard.error, shard.image_problem, shard.columns) == ("", "", ("image", "label"))


@pytest.mark.parametrize(
    ("image", "problem"),
    [
        (pa.array([1, 2]), "int64"),
        (pa.array([{"path": "p"}] * 2), "a struct of path, without `bytes`"),
        (pa.array(["x", "y"]), "string"),
    ],
    ids=["numbers", "struct without bytes", "text"],
)
def test_a_column_that_holds_no_images_is_a_problem_in_words(world: Stores, image: pa.Array, problem: str) -> None:
    assert problem in one(world, "no-images", shard_bytes(2, image=image)).image_problem


def test_missing_columns_still_list_what_is_there(world: Stores) -> None:
    shard = one(world, "other-columns", shard_bytes(2, image=None, label=None, picture=pa.array([b"x", b"y"])))
    assert (shard.error, shard.columns, shard.label_counts) == ("", ("picture",), {})


def test_without_a_label_column_in_the_job_labels_are_not_read(world: Stores) -> None:
    shard = one(world, "unlabelled", shard_bytes(), Columns(label=None))
    assert (shard.label_kind, shard.label_counts) == (None, {})


def test_class_names_come_from_our_metadata_or_hugging_faces(world: Stores) -> None:
    hugging_face = {"info": {"features": {"label": {"names": ["cat", "dog", "owl"], "_type": "ClassLabel"}}}}
    for metadata in (
        {"datalocal": json.dumps({"classes": ["cat", "dog", "owl"]})},
        {"huggingface": json.dumps(hugging_face)},
    ):
        assert one(world, "named", shard_bytes(metadata=metadata)).classes == ("cat", "dog", "owl")
    for strange in ("no json", "[]", '{"classes": 3}', '{"info": {"features": []}}'):
        shard = one(world, "named", shard_bytes(metadata={"datalocal": strange, "huggingface": strange}))
        assert (shard.error, shard.classes) == ("", ())


def test_hidden_files_and_markers_are_no_shards(world: Stores) -> None:
    for name in ("part-0.parquet", "nested/part-1.parquet"):
        world.put("a", f"spark/{name}", shard_bytes())
    world.put("a", "spark/part-r-00002", shard_bytes())  # as some writers name their parts
    for name in (
        "_SUCCESS",
        ".part-0.parquet.crc",
        "_temporary/0/part.parquet",
        ".hidden.parquet",
        "README.md",
        "notes",
        "empty",
    ):
        world.put(
            "a", f"spark/{name}", b"" if name == "empty" else shard_bytes() if name.endswith("parquet") else b"text"
        )
    assert [shard.key for shard in listed(world, "spark").shards] == [
        "nested/part-1.parquet",
        "part-0.parquet",
        "part-r-00002",
    ]


@pytest.mark.parametrize("keep", [0, 3, 4, 100, -1])
def test_a_truncated_file_is_an_error_text_and_the_others_are_listed(world: Stores, keep: int) -> None:
    content = shard_bytes()
    world.put("a", "torn/good.parquet", content)
    world.put("a", "torn/torn.parquet", content[:keep])
    good, torn = listed(world, "torn").shards
    assert good.error == ""
    assert torn.error
    assert torn.bytes == len(content[:keep])


def test_a_file_replaced_by_a_good_one_is_good(world: Stores) -> None:
    assert one(world, "mended", b"PAR1").error
    assert one(world, "mended", shard_bytes(3)).group_rows == (3,)
    assert one(world, "mended", shard_bytes(4)).group_rows == (4,)


def test_a_listing_reads_labels_without_the_images(tmp_path: Path) -> None:
    """Zeroes over the image pages: who reads them fails, who leaves them alone does not notice."""
    rows = 50
    content = bytearray(shard_bytes(rows, group=rows, image=pa.array([b"x" * 10_000] * rows)))
    chunk = pq.read_metadata(pa.BufferReader(bytes(content))).row_group(0).column(0)
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    content[start : start + chunk.total_compressed_size] = bytes(chunk.total_compressed_size)
    with pytest.raises((OSError, pa.ArrowException)):
        pq.read_table(pa.BufferReader(bytes(content)))
    with stores(tmp_path, "a") as world:
        shard = one(world, "photos", bytes(content))
        assert (shard.error, sum(shard.label_counts.values())) == ("", rows)
        assert sum(row.bytes for row in world.counter.rows()) < 2_000, "only the answer travelled"
        assert {row.class_ for row in world.counter.rows()} == {"control"}


def test_listings_come_in_pages_and_are_whole(world: Stores, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [f"part-{number:02d}.parquet" for number in range(7)]
    for key in keys:
        world.put("a", f"paged/{key}", shard_bytes())
    monkeypatch.setattr(listing_module, "_PAGE_SHARDS", 3)
    assert [shard.key for shard in listed(world, "paged").shards] == keys
    monkeypatch.setattr(listing_module, "_PAGE_SECONDS", 0.0)
    assert [shard.key for shard in listed(world, "paged").shards] == keys


def test_a_data_set_that_is_not_there_is_an_empty_listing(world: Stores) -> None:
    assert listed(world, "nothing/here").shards == ()


def test_data_sets_are_the_folders_that_hold_shards(tmp_path: Path) -> None:
    with stores(tmp_path, "a") as world:
        for path in (
            "photos/x.parquet",
            "small/run/arm/x.parquet",
            "small/run/arm/y.parquet",
            "_tmp/x.parquet",
            "text/x.txt",
        ):
            world.put("a", path, shard_bytes())
        assert world.store("head").datasets("a") == world.store("a").datasets("a") == ["photos", "small/run/arm"]
