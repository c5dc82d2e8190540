"""Thousands of sample pictures from 16 photographs: crops of the pictures inside scikit-image, scikit-learn and matplotlib.

Training and validation crops come from different parts of a photograph and never overlap; still they show the same thing, so
accuracy on them means little. The photographs are small: crops for training are enlarged up to 1.65 times, those for
validation up to 2.2 times, so that all have the same size.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg

from datalocal.demo.packages import packaged_file
from datalocal.errors import DatasetError

Pixels = npt.NDArray[np.uint8]
Split = Literal["train", "val"]

PHOTOGRAPHS = (
    "skimage/data/astronaut.png",
    "skimage/data/brick.png",
    "skimage/data/camera.png",
    "skimage/data/cell.png",
    "skimage/data/coffee.png",
    "skimage/data/grass.png",
    "skimage/data/gravel.png",
    "skimage/data/hubble_deep_field.jpg",
    "skimage/data/ihc.png",
    "skimage/data/moon.png",
    "skimage/data/motorcycle_left.png",  # its stereo twin motorcycle_right is nearly the same picture and stays out
    "skimage/data/retina.jpg",
    "skimage/data/rocket.jpg",
    "sklearn/datasets/images/china.jpg",
    "sklearn/datasets/images/flower.jpg",
    "matplotlib/mpl-data/sample_data/grace_hopper.jpg",
)
"""All photographs of at least 400x600 or 512x512 pixels in these wheels. Drawings, text and what is fetched on demand are
left out."""

TRAIN_PART = 0.57
"""Share of a photograph's longer side (as crops fit into it) that training crops come from; validation has the rest."""

SMALLEST = 0.9
"""A crop is at least this share of the largest that fits into its part."""

VALIDATE_EVERY = 5
QUALITIES = (80, 86, 90, 93, 95, 97, 98)
TARGET_BYTES = 60_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Crop:
    """One sample image."""

    image_bytes: bytes
    label: str
    """The photograph that it is a part of (for digits: the digit)."""
    source: str
    """The file inside its package."""
    split: Split
    path: str
    """A name of its own, as a file in a folder would have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A rectangle within a photograph, in pixels."""

    left: int
    top: int
    width: int
    height: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Photograph:
    source: str
    label: str
    pixels: Pixels
    """uint8 [height, width, 3] in RGB, or [height, width, 1] where it has no colour."""
    quality: int


def make_crops(count: int, seed: int, size: tuple[int, int] = (500, 375)) -> Iterator[Crop]:
    """`count` JPEG crops of `size` (width, height), photographs in turn, every fifth round for validation.

    The same arguments give the same bytes. Raises DatasetError naming the extra to install when a package is missing.
    """
    threads = len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(max_workers=threads) as pool:
        photographs = list(pool.map(lambda source: _load(source, size), PHOTOGRAPHS))
        waiting: deque[Future[Crop]] = deque()
        for number in range(count):
            waiting.append(pool.submit(_crop, photographs[number % len(photographs)], number, seed, size))
            if len(waiting) > 16 * threads:  # a few ahead; 2,000 at once would be 120 MB
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def part(width: int, height: int, split: Split, size: tuple[int, int]) -> Box:
    """The part of a photograph that crops of one split come from; the two parts do not overlap."""
    across = width * size[1] >= height * size[0]  # cut where crops lose the least
    whole = width if across else height
    cut = round(whole * TRAIN_PART)
    start, length = (0, cut) if split == "train" else (cut, whole - cut)
    if across:
        return Box(left=start, top=0, width=length, height=height)
    return Box(left=0, top=start, width=width, height=length)


def draw_box(within: Box, size: tuple[int, int], draw: np.random.Generator) -> Box:
    """A rectangle of the shape of `size`, at a random place within a part, not much smaller than fits; never larger than
    `size`, so that crops are enlarged or taken as they are, and keep the detail of the photograph."""
    fit = min(within.width / size[0], within.height / size[1], 1.0)
    scale = fit * draw.uniform(SMALLEST, 1.0)
    width, height = int(scale * size[0]), int(scale * size[1])
    left = within.left + int(draw.integers(within.width - width + 1))
    top = within.top + int(draw.integers(within.height - height + 1))
    return Box(left=left, top=top, width=width, height=height)


def _load(source: str, size: tuple[int, int]) -> _Photograph:
    image = cv2.imdecode(np.fromfile(packaged_file(source), dtype=np.uint8), cv2.IMREAD_ANYCOLOR)
    if image is None:
        raise DatasetError(f"{source} is damaged", "pip install --force-reinstall 'datalocal[demo]'")
    pixels: Pixels = np.asarray(image, dtype=np.uint8)
    pixels = pixels[:, :, None] if pixels.ndim == 2 else pixels[:, :, ::-1]
    sample = _cut(pixels, draw_box(_part_of(pixels, "train", size), size, np.random.default_rng(0)), size, mirror=False)
    quality = min(QUALITIES, key=lambda quality: abs(len(_encode(sample, quality)) - TARGET_BYTES))
    return _Photograph(source=source, label=PurePosixPath(source).stem, pixels=pixels, quality=quality)


def _part_of(pixels: Pixels, split: Split, size: tuple[int, int]) -> Box:
    return part(pixels.shape[1], pixels.shape[0], split, size)


def _crop(photograph: _Photograph, number: int, seed: int, size: tuple[int, int]) -> Crop:
    split: Split = "val" if number // len(PHOTOGRAPHS) % VALIDATE_EVERY == VALIDATE_EVERY - 1 else "train"
    draw = np.random.default_rng([seed, number])
    box = draw_box(_part_of(photograph.pixels, split, size), size, draw)
    pixels = _cut(photograph.pixels, box, size, mirror=bool(draw.integers(2)))
    return Crop(
        image_bytes=_encode(pixels, photograph.quality),
        label=photograph.label,
        source=photograph.source,
        split=split,
        path=f"{photograph.label}/{split}-{number:06d}.jpg",
    )


def _cut(pixels: Pixels, box: Box, size: tuple[int, int], *, mirror: bool) -> Pixels:
    piece = pixels[box.top : box.top + box.height, box.left : box.left + box.width]
    if (box.width, box.height) != size:
        piece = np.asarray(cv2.resize(piece, size, interpolation=cv2.INTER_CUBIC), dtype=np.uint8)
    piece = piece.reshape(size[1], size[0], -1)
    return np.ascontiguousarray(piece[:, ::-1] if mirror else piece)


def _encode(pixels: Pixels, quality: int) -> bytes:
    grey = pixels.shape[2] == 1
    encoded: bytes = simplejpeg.encode_jpeg(
        pixels, quality=quality, colorspace="GRAY" if grey else "RGB", colorsubsampling="Gray" if grey else "420"
    )
    return encoded
