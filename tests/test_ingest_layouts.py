"""Every layout a user may bring: what becomes of its images, labels, paths and other columns, and of its mistakes."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from datalocal.catalog.probe import probe
from datalocal.errors import DatasetError
from datalocal.spec.job import Columns
from tests.ingesting import NODES, classes_of, decoded, picture, world, write_files, write_tar


def hugging_face(names: list[str]) -> dict[bytes, bytes]:
    """The metadata that Hugging Face's datasets write."""
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
    return {b"huggingface": json.dumps({"info": {"features": features}}).encode()}


# -- a folder ----------------------------------------------------------------------------------------------------------------


def test_a_folder_of_classes(tmp_path: Path) -> None:
    """The class is the folder's name, numbered in alphabetical order; bytes are not touched; hidden files are none of it."""
    images = {f"{name}/deep/{i}.jpg": picture(i) for i, name in enumerate(["zebra", "ant", "bee"] * 4)}
    source = write_files(tmp_path / "src", images | {".git/x.jpg": b"x", "ant/notes.txt": b"x", "bee/.y.jpg": b"x"})
    with world(tmp_path) as small:
        report = small.ingest(source)
        rows, table = small.rows(), small.table()
        catalog = probe(small.stores.store(), small.cluster, "photos", Columns(), NODES)
    assert (report.images, report.damaged) == (12, ())
    assert {row["path"]: row["image"] for row in rows} == images
    assert classes_of(table) == ["ant", "bee", "zebra"]
    assert all(row["path"].split("/")[0] == ["ant", "bee", "zebra"][row["label"]] for row in rows)
    assert table.schema.names == ["image", "label", "path"]
    assert table.schema.field("image").type == pa.binary()
    assert table.schema.field("label").type == pa.int64()
    assert catalog.labels == ("ant", "bee", "zebra")
    assert [row["label"] for row in rows] != sorted(row["label"] for row in rows), "not sorted by class"


def test_a_folder_of_splits(tmp_path: Path) -> None:
    """Folders named like splits above the class folders become the column `split`."""
    names = [f"{split}/{label}/{i}.png" for split in ("train", "val") for label in ("x", "y") for i in range(3)]
    source = write_files(tmp_path / "src", {name: picture(i, suffix=".png") for i, name in enumerate(names)})
    with world(tmp_path) as small:
        small.ingest(source)
        rows, table = small.rows(), small.table()
    assert classes_of(table) == ["x", "y"]
    assert Counter(row["split"] for row in rows) == {"train": 6, "val": 6}
    assert all(row["path"].startswith(f"{row['split']}/{'xy'[row['label']]}/") for row in rows)


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    """Images directly in the folder: a data set without a label column, not one with made-up labels."""
    source = write_files(tmp_path / "src", {f"{i}.jpg": picture(i) for i in range(3)})
    with world(tmp_path) as small:
        small.ingest(source)
        assert small.table().schema.names == ["image", "path"]


def test_images_beside_class_folders_are_refused(tmp_path: Path) -> None:
    """Some images in class folders and some not: nobody knows what is meant."""
    source = write_files(tmp_path / "src", {"a/1.jpg": picture(1), "2.jpg": picture(2)})
    with world(tmp_path) as small, pytest.raises(DatasetError, match=r"1 of 2 images lie in no class folder.*2\.jpg"):
        small.ingest(source)


# -- tars --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("suffix", "mode"), [(".tar", "w"), (".tar.gz", "w:gz")])
def test_tars_with_class_numbers(tmp_path: Path, suffix: str, mode: str) -> None:
    """`.cls` with integers: the labels stay what they are, in the order of the tars."""
    write_tar(tmp_path / "src" / f"b{suffix}", {"k3.cls": b"3", "k3.jpg": picture(3)}, mode)
    members = {
        f"dir/k{i}.{end}": picture(i) if end == "jpg" else b"%d\n" % (7 * i) for i in range(3) for end in ("jpg", "cls")
    }
    write_tar(tmp_path / "src" / f"a{suffix}", members, mode)
    with world(tmp_path) as small:
        report = small.ingest(tmp_path / "src")
        rows = small.rows()
    assert report.images == 4
    assert [(row["path"], row["label"]) for row in rows] == [
        ("dir/k0.jpg", 0), ("dir/k1.jpg", 7), ("dir/k2.jpg", 14), ("k3.jpg", 3)
    ]  # fmt: skip
    assert [row["image"] for row in rows] == [picture(i) for i in range(4)]


def test_tars_with_json(tmp_path: Path) -> None:
    """`.json` gives the label and further columns: plain values with their type, others as JSON text."""
    said = [
        {"label": "dog", "split": "train", "width": 3, "score": 1, "tags": ["x"]},
        {"label": "cat", "split": "test", "width": 4, "score": 0.5, "tags": None},
    ]
    members: dict[str, bytes] = {}
    for i, content in enumerate(said):
        members |= {f"{i}.json": json.dumps(content).encode(), f"{i}.png": picture(i, suffix=".png")}
    write_tar(tmp_path / "src" / "x.tar", members)
    with world(tmp_path) as small:
        small.ingest(tmp_path / "src")
        rows, table = small.rows(), small.table()
    assert classes_of(table) == ["cat", "dog"]
    del rows[0]["image"], rows[1]["image"]
    assert rows == [
        {"label": 1, "path": "0.png", "score": 1.0, "split": "train", "tags": '["x"]', "width": 3},
        {"label": 0, "path": "1.png", "score": 0.5, "split": "test", "tags": None, "width": 4},
    ]
    assert table.schema.field("width").type == pa.int64()


def test_a_tar_sample_without_an_image_is_listed(tmp_path: Path) -> None:
    """A label that lost its image is told as damaged, with tar and number."""
    write_tar(tmp_path / "src" / "x.tar", {"k0.cls": b"1", "k1.cls": b"2", "k1.jpg": picture(1)})
    with world(tmp_path) as small:
        report = small.ingest(tmp_path / "src")
    assert report.images == 1
    assert [(bad.shard, bad.row, bad.problem) for bad in report.damaged] == [("x.tar", 0, "no image among .cls")]


def test_a_tar_cut_short_anywhere_is_refused(tmp_path: Path) -> None:
    """Within a member, within a header, or between two: the ingest stops and names the tar, and nothing is left behind."""
    whole = write_tar(tmp_path / "src" / "x.tar", {f"k{i}.jpg": picture(i) for i in range(3)}).read_bytes()
    member = 512 + -(-len(picture(0)) // 512) * 512
    with world(tmp_path) as small:
        for cut in (member - 700, member, member + 300, 2 * member, 3 * member):
            (tmp_path / "src" / "x.tar").write_bytes(whole[:cut])
            with pytest.raises(DatasetError, match=r"x\.tar cannot be read as a tar"):
                small.ingest(tmp_path / "src")
            assert small.files() == {}
        (tmp_path / "src" / "x.tar").write_bytes(whole)
        assert small.ingest(tmp_path / "src").images == 3


# -- Parquet -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [("bytes", "path"), ("path", "bytes")])
def test_parquet_of_hugging_face(tmp_path: Path, order: tuple[str, str]) -> None:
    """A struct of bytes and path, in either order; class names from its metadata; the split from the files' names."""
    rows = [{"bytes": picture(i), "path": f"{i}.jpg"} for i in range(6)]
    struct = pa.struct([(name, pa.binary() if name == "bytes" else pa.string()) for name in order])
    for at, split in ((0, "train"), (3, "test")):
        table = pa.table({"image": pa.array(rows[at : at + 3], struct), "label": [0, 1, 0]})
        file = tmp_path / "src" / "data" / f"{split}-00000-of-00001.parquet"
        file.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table.replace_schema_metadata(hugging_face(["cat", "dog"])), file)
    with world(tmp_path) as small:
        small.ingest(tmp_path / "src")
        table = small.table()
        catalog = probe(small.stores.store(), small.cluster, "photos", Columns(), NODES)
    assert table.schema.names == ["image", "label", "path", "split"]
    assert table.column("split").to_pylist() == ["test"] * 3 + ["train"] * 3
    assert table.column("image").to_pylist() == [picture(i) for i in (3, 4, 5, 0, 1, 2)]
    assert table.column("path").to_pylist() == [f"{i}.jpg" for i in (3, 4, 5, 0, 1, 2)]
    assert catalog.labels == ("cat", "dog")


def test_null_bytes_with_a_path_are_read_below_the_folder_only(tmp_path: Path) -> None:
    """Found next to the Parquet file or below the source; a path that leads out, also by a link, is damaged, not followed."""
    src = write_files(tmp_path / "src", {"data/near.jpg": picture(1), "far.jpg": picture(2)})
    secret = write_files(tmp_path, {"secret.jpg": picture(3)}) / "secret.jpg"
    (src / "data" / "link.jpg").symlink_to(secret)
    paths = ["near.jpg", "far.jpg", "../../secret.jpg", str(secret), "link.jpg", "gone.jpg", None]
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": None, "path": path} for path in paths] + [None]
    pq.write_table(pa.table({"image": pa.array(rows, struct), "label": [0] * 8}), src / "data" / "x.parquet")
    with world(tmp_path) as small:
        report = small.ingest(src)
        assert small.table().column("image").to_pylist() == [picture(1), picture(2)]
    assert [bad.row for bad in report.damaged] == [2, 3, 4, 5, 6, 7]
    assert all("leads out of" in bad.problem for bad in report.damaged[:3])
    assert "there is no file" in report.damaged[3].problem
    assert [bad.problem for bad in report.damaged[4:]] == ["neither bytes nor a path"] * 2


@pytest.mark.parametrize("type_", [pa.binary(), pa.large_binary(), pa.binary_view()])
def test_parquet_with_a_plain_column(tmp_path: Path, type_: pa.DataType) -> None:
    """The only binary column holds the images whatever its name; texts label; everything else is carried with its type."""
    table = pa.table(
        {
            "jpeg": pa.array([picture(i) for i in range(4)], type_),
            "label": pa.array(["b", "a", None, "b"]).dictionary_encode(),
            "path": ["p0", "p1", None, "p3"],
            "box": pa.array([[1, 2], [], None, [3]], pa.list_(pa.int32())),
            "when": pa.array([1, 2, 3, None], pa.timestamp("s")),
        }
    )
    pq.write_table(table, tmp_path / "x.parquet")
    with world(tmp_path) as small:
        small.ingest(tmp_path / "x.parquet")
        found = small.table()
    assert found.schema.names == ["image", "label", "path", "box", "when"]
    assert classes_of(found) == ["a", "b"]
    assert found.column("label").to_pylist() == [1, 0, None, 1]
    assert found.column("path").to_pylist() == ["p0", "p1", "x.parquet#2", "p3"]
    assert found.column("box").equals(table.column("box"))
    assert found.column("when").to_pylist() == table.column("when").to_pylist()
    assert found.column("image").to_pylist() == [picture(i) for i in range(4)]


def test_parquet_that_cannot_be_understood_is_refused(tmp_path: Path) -> None:
    """No image column, several, different columns, a truncated file, a taken name: each named, nothing written."""
    image = pa.array([picture(1)], pa.binary())
    cases: list[tuple[dict[str, dict[str, object]], str]] = [
        ({"x": {"pixels": [1]}}, "no column can hold images"),
        ({"x": {"a": image, "b": image}}, r"several columns can hold images \(a, b\)"),
        ({"x": {"image": ["text"]}}, "'image' is string; images are binary"),
        ({"x": {"image": image, "n": [1]}, "y": {"image": image, "n": ["1"]}}, r"y\.parquet has other columns"),
        ({"x": {"jpg": image, "image": [1]}}, "'image' of the source cannot be carried over"),
    ]
    with world(tmp_path) as small:
        for number, (files, message) in enumerate(cases):
            source = tmp_path / str(number)
            source.mkdir()
            for name, columns in files.items():
                pq.write_table(pa.table(columns), source / f"{name}.parquet")
            with pytest.raises(DatasetError, match=message):
                small.ingest(source)
        whole = (tmp_path / "3" / "x.parquet").read_bytes()
        source = write_files(tmp_path / "cut", {"x.parquet": whole[:-20]})
        with pytest.raises(DatasetError, match=r"x\.parquet cannot be read as Parquet"):
            small.ingest(source)
        with pytest.raises(DatasetError, match="'image' is int64"):
            small.ingest(tmp_path / "4", image="image")
        assert small.files() == {}


# -- finding the layout ------------------------------------------------------------------------------------------------------


def test_what_holds_nothing_or_two_things_is_refused(tmp_path: Path) -> None:
    """The error says what lies there; the layout can then be chosen."""
    mixed = write_files(tmp_path / "mixed", {"a/1.jpg": picture(1)})
    write_tar(mixed / "x.tar", {"k.jpg": picture(2)})
    empty = write_files(tmp_path / "empty", {"a.csv": b"", "b.csv": b"", "c.txt": b""})
    with world(tmp_path) as small:
        with pytest.raises(DatasetError, match=r"more than one kind of data \(1 \.jpg, 1 \.tar\)"):
            small.ingest(mixed)
        with pytest.raises(DatasetError, match=r"no images, tars or Parquet files \(2 \.csv, 1 \.txt\)"):
            small.ingest(empty)
        with pytest.raises(DatasetError, match="holds no Parquet files"):
            small.ingest(mixed, layout="parquet")
        with pytest.raises(DatasetError, match="there is no file or folder"):
            small.ingest(tmp_path / "nowhere")
        assert small.ingest(mixed, layout="webdataset").images == 1
        assert small.rows()[0]["path"] == "k.jpg"


def test_every_usual_format_is_taken(tmp_path: Path) -> None:
    """Formats other than JPEG are kept as they are."""
    suffixes = [".jpg", ".png", ".bmp", ".webp", ".tif"]
    source = write_files(tmp_path / "src", {f"{i}{end}": picture(i, suffix=end) for i, end in enumerate(suffixes)})
    with world(tmp_path) as small:
        assert small.ingest(source).images == len(suffixes)
        assert all(decoded(row["image"]).shape == (24, 24, 3) for row in small.rows())
