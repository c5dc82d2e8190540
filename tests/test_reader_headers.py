"""The fast path reads sizes from headers by itself: they are libjpeg's, and what needs care never takes it."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from datalocal.tasks.train.headers import plain_jpeg_sizes


def sizes(*images: bytes) -> list[tuple[int, int]]:
    offsets = np.concatenate(([0], np.cumsum([len(image) for image in images]))).astype(np.int64)
    found: npt.NDArray[np.int64] = plain_jpeg_sizes(np.frombuffer(b"".join(images), np.uint8), offsets)
    return [(int(height), int(width)) for height, width in found]


def jpeg(height: int, width: int, mode: str = "RGB", **options: Any) -> bytes:
    pixels = np.random.default_rng(height * 1000 + width).integers(0, 256, (height, width, len(mode)), np.uint8)
    out = io.BytesIO()
    image = Image.fromarray(pixels[:, :, 0] if mode == "L" else pixels, "L" if mode == "L" else mode)
    image.save(out, "JPEG", **options)
    return out.getvalue()


def exif() -> bytes:
    block = Image.Exif()
    block[0x0112] = 6
    return block.tobytes()


@settings(max_examples=60)
@given(
    st.lists(
        st.tuples(st.integers(1, 90), st.integers(1, 90), st.sampled_from(["RGB", "L"]), st.booleans(), st.booleans()),
        min_size=1,
        max_size=8,
    )
)
def test_sizes_are_those_of_the_decoder(pictures: list[tuple[int, int, str, bool, bool]]) -> None:
    made = [
        jpeg(height, width, mode, progressive=progressive, comment=b"seen \xff\xd8" if comment else b"")
        for height, width, mode, progressive, comment in pictures
    ]
    assert sizes(*made) == [simplejpeg.decode_jpeg_header(data)[:2] for data in made]


@pytest.mark.parametrize(
    "data",
    [
        jpeg(20, 30, exif=exif()),
        jpeg(20, 30, "CMYK"),
        jpeg(20, 30)[:40],
        jpeg(20, 30)[1:],
        b"",
        b"\xff\xd8",
        b"\x89PNG\r\n\x1a\n" + bytes(60),
        b"\xff\xd8" + b"\xff\xe2\x00\x02" * 40 + jpeg(20, 30)[2:],
    ],
    ids=["exif", "cmyk", "cut short", "no start", "empty", "start only", "png", "too many segments"],
)
def test_what_needs_care_has_no_size_and_leaves_its_neighbours_theirs(data: bytes) -> None:
    assert sizes(jpeg(11, 12), data, jpeg(13, 14)) == [(11, 12), (0, 0), (13, 14)]


def test_a_profile_is_no_reason_for_care() -> None:
    assert sizes(jpeg(20, 30, icc_profile=bytes(3000))) == [(20, 30)]


@settings(max_examples=200)
@given(st.lists(st.binary(max_size=80), min_size=1, max_size=6), st.booleans())
def test_garbage_is_never_read_beyond_its_end(garbage: list[bytes], with_start: bool) -> None:
    start = b"\xff\xd8\xff\xe0\x00\x04\x00\x00" if with_start else b""
    assert len(sizes(*(start + each for each in garbage))) == len(garbage)
