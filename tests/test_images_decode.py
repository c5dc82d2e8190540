"""Decoding: what Pillow says about orientation and colours, and that damage is never a picture."""

from __future__ import annotations

import io
import pickle
import warnings
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from datalocal.tasks.images import DamagedImage, decode, encode_jpeg, image_size
from datalocal.tasks.orientation import jpeg_orientation, oriented

LIMIT = 1_000_000
ORIENTATION = 0x0112


def blocks(height: int = 50, width: int = 70) -> npt.NDArray[np.uint8]:
    """A picture of large even blocks, which JPEG keeps nearly as they are."""
    coarse = np.random.default_rng(0).integers(0, 255, (height // 10, width // 10, 3))
    return np.kron(coarse, np.ones((10, 10, 1))).astype(np.uint8)


def saved(image: Image.Image, form: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def with_orientation(value: int, form: str = "JPEG", **options: Any) -> bytes:
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    exif[ORIENTATION] = value
    return saved(Image.fromarray(blocks()), form, exif=exif, **options)


def by_pillow(data: bytes) -> npt.NDArray[np.uint8]:
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


def difference(ours: npt.NDArray[Any], theirs: npt.NDArray[Any]) -> int:
    assert ours.shape == theirs.shape
    return int(np.abs(ours.astype(int) - theirs.astype(int)).max())


@pytest.mark.parametrize("value", range(10))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_every_orientation_is_applied_as_pillow_applies_it(form: str, value: int) -> None:
    data = with_orientation(value, form)
    pixels = decode(data, max_pixels=LIMIT)
    assert difference(pixels, by_pillow(data)) <= (2 if form == "JPEG" else 0)
    assert image_size(data) == pixels.shape[:2]
    assert pixels.flags.c_contiguous and pixels.flags.writeable


def test_orientation_is_found_in_either_byte_order_after_other_segments_and_in_xmp() -> None:
    plain = saved(Image.fromarray(blocks()), "JPEG")

    def with_segment(marker: int, content: bytes) -> bytes:
        return plain[:2] + bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content + plain[2:]

    little = b"Exif\0\0II*\0\x08\0\0\0\x01\0" + b"\x12\x01\x03\0\x01\0\0\0\x06\0\0\0" + b"\0\0\0\0"
    big = b"Exif\0\0MM\0*\0\0\0\x08\0\x01" + b"\x01\x12\0\x03\0\0\0\x01\0\x06\0\0" + b"\0\0\0\0"
    long = b"Exif\0\0MM\0*\0\0\0\x08\0\x01" + b"\x01\x12\0\x04\0\0\0\x01\0\0\0\x06" + b"\0\0\0\0"
    xmp = b'http://ns.adobe.com/xap/1.0/\0<x tiff:Orientation="6"/>'
    for data in (with_segment(0xE1, segment) for segment in (little, big, long, xmp)):
        assert jpeg_orientation(memoryview(data)) == 6
        assert difference(decode(data, max_pixels=LIMIT), by_pillow(data)) <= 2


def test_broken_exif_round_a_sound_picture_is_no_damage() -> None:
    plain = saved(Image.fromarray(blocks()), "JPEG")
    for content in (
        b"Exif\0\0",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        b"Exif\0\0nonsense",
        b"Exif\0\0MM\0*\0\0\0\x08\xff\xff",
    ):
        data = plain[:2] + b"\xff\xe1" + (len(content) + 2).to_bytes(2, "big") + content + plain[2:]
        assert decode(data, max_pixels=LIMIT).shape == (50, 70, 3)


@given(st.integers(-1, 12), st.integers(1, 5), st.integers(1, 5))
def test_turning_keeps_every_pixel(value: int, height: int, width: int) -> None:
    pixels = np.arange(height * width * 3, dtype=np.uint8).reshape(height, width, 3)
    turned = oriented(pixels, value)
    assert sorted(map(tuple, turned.reshape(-1, 3))) == sorted(map(tuple, pixels.reshape(-1, 3)))
    assert turned.shape[:2] == ((width, height) if value in (5, 6, 7, 8) else (height, width))


@pytest.mark.parametrize("mode", ["CMYK", "L"])
def test_jpegs_of_other_colours_give_the_same_picture_as_pillow(mode: str) -> None:
    data = saved(Image.fromarray(blocks()).convert(mode), "JPEG", quality=95)
    assert difference(decode(data, max_pixels=LIMIT), by_pillow(data)) <= 2


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "PA"])
def test_every_mode_becomes_rgb(mode: str) -> None:
    image = Image.fromarray(blocks())
    image = image.convert("P").convert("PA") if mode == "PA" else image.convert(mode)
    assert decode(saved(image, "TIFF" if mode == "PA" else "PNG"), max_pixels=LIMIT).shape == (50, 70, 3)


@pytest.mark.parametrize("form", ["PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_other_formats_are_read(form: str) -> None:
    options = {"lossless": True} if form == "WEBP" else {}
    data = saved(Image.fromarray(blocks()), form, **options)
    assert difference(decode(data, max_pixels=LIMIT), blocks()) <= (40 if form == "GIF" else 0)
    assert image_size(data) == (50, 70)


def test_what_is_transparent_is_white() -> None:
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[0, 0, 3] = 255
    found = decode(saved(Image.fromarray(pixels, "RGBA"), "PNG"), max_pixels=LIMIT)
    assert found[0, 0].tolist() == [0, 0, 0] and found[3, 3].tolist() == [255, 255, 255]
    palette = Image.fromarray(np.zeros((4, 4), np.uint8)).convert("P")
    assert decode(saved(palette, "PNG", transparency=0), max_pixels=LIMIT).min() == 255


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    wide = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    for form in ("PNG", "TIFF", "PPM"):
        found = decode(saved(Image.fromarray(wide), form), max_pixels=LIMIT)
        assert (found[..., 0] == wide >> 8).all() and (found[..., 0] == found[..., 2]).all()


def test_floating_point_pixels_are_refused() -> None:
    data = saved(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF")
    with pytest.raises(DamagedImage, match="more than 16 bits"):
        decode(data, max_pixels=LIMIT)


@settings(deadline=None, max_examples=60)
@given(st.data(), st.sampled_from(["baseline", "progressive", "CMYK", "PNG", "WEBP", "TIFF", "GIF"]))
def test_a_truncated_image_is_damaged_wherever_it_ends(data: st.DataObject, kind: str) -> None:
    image = Image.fromarray(blocks())
    whole = {
        "baseline": lambda: saved(image, "JPEG"),
        "progressive": lambda: saved(image, "JPEG", progressive=True),
        "CMYK": lambda: saved(image.convert("CMYK"), "JPEG"),
        "PNG": lambda: saved(image, "PNG"),
        "WEBP": lambda: saved(image, "WEBP"),
        "TIFF": lambda: saved(image, "TIFF"),
        "GIF": lambda: saved(image, "GIF"),
    }[kind]()
    cut = data.draw(st.integers(0, len(whole) - 1), label="cut")
    try:
        pixels = decode(whole[:cut], max_pixels=LIMIT)
    except DamagedImage:
        return
    # Some formats end with bytes that hold no pixel: then, and only then, may a cut go unnoticed.
    assert kind not in ("baseline", "progressive", "CMYK")
    assert (pixels == decode(whole, max_pixels=LIMIT)).all()


@settings(deadline=None, max_examples=60)
@given(st.data(), st.sampled_from(["JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP"]))
def test_garbage_is_damaged_or_a_picture_and_never_another_error(data: st.DataObject, form: str) -> None:
    content = bytearray(saved(Image.fromarray(blocks()), form))
    for at in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=8), label="at"):
        content[at] ^= data.draw(st.integers(1, 255), label="flip")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow tells of odd EXIF
        try:
            assert decode(bytes(content), max_pixels=LIMIT).dtype == np.uint8
        except DamagedImage as damage:
            assert damage.problem


def test_a_jpeg_with_corrupt_data_in_the_middle_is_damaged() -> None:
    data = bytearray(
        saved(Image.fromarray(np.random.default_rng(1).integers(0, 255, (64, 64, 3)).astype(np.uint8)), "JPEG")
    )
    middle = len(data) // 2
    data[middle : middle + 2] = b"\xff\xd9"
    with pytest.raises(DamagedImage, match="JPEG"):
        decode(bytes(data), max_pixels=LIMIT)


def test_padding_before_the_end_mark_is_no_damage() -> None:
    whole = saved(Image.fromarray(blocks()), "JPEG")
    padded = whole[:-2] + bytes(8) + whole[-2:]
    assert (decode(padded, max_pixels=LIMIT) == decode(whole, max_pixels=LIMIT)).all()


def test_too_many_pixels_are_refused_before_a_pixel_is_decoded() -> None:
    png = saved(Image.new("1", (20_000, 20_000)), "PNG")  # 50 MB as bits, 1.2 GB as RGB, a few kB as PNG
    with pytest.raises(DamagedImage, match=r"20000 x 20000 = 400000000 pixels|[Bb]omb"):
        decode(png, max_pixels=50_000_000)
    jpeg = saved(Image.fromarray(blocks()), "JPEG")
    truncated = jpeg[: len(jpeg) // 2]  # decoding it would say something else
    with pytest.raises(DamagedImage, match="70 x 50 = 3500 pixels, more than the 3499 that are allowed"):
        decode(truncated, max_pixels=3499)
    assert decode(jpeg, max_pixels=3500).shape == (50, 70, 3)


@pytest.mark.parametrize("data", [None, b"", bytearray(), memoryview(b""), np.empty(0, np.uint8), pa.py_buffer(b"")])
def test_no_bytes_are_damage(data: Any) -> None:
    for read in (lambda: decode(data, max_pixels=LIMIT), lambda: image_size(data)):
        with pytest.raises(DamagedImage, match="no bytes"):
            read()


def test_what_is_no_image_says_how_it_begins() -> None:
    with pytest.raises(DamagedImage, match=r"known format .begins with 3c 68 74 6d 6c 3e"):
        decode(b"<html>", max_pixels=LIMIT)


def test_any_buffer_will_do() -> None:
    data = saved(Image.fromarray(blocks()), "JPEG")
    forms: list[Any] = [bytearray(data), memoryview(data), np.frombuffer(data, np.uint8), pa.py_buffer(data)]
    for form in forms:
        assert (decode(form, max_pixels=LIMIT) == decode(data, max_pixels=LIMIT)).all()


@given(st.integers(8, 300), st.integers(8, 300), st.integers(1, 200))
@settings(deadline=None, max_examples=50)
def test_scaled_decoding_never_goes_below_the_asked_side(height: int, width: int, side: int) -> None:
    data = encode_jpeg(np.zeros((height, width, 3), np.uint8), 90)
    found = decode(data, max_pixels=LIMIT, min_side=side).shape
    if min(height, width) < 2 * side:
        assert found == (height, width, 3)
    else:
        assert min(found[:2]) >= side and found[0] <= height // 2 + 1


def test_encoding_takes_colour_and_grey_also_as_views_and_refuses_the_rest() -> None:
    pixels = blocks()
    assert simplejpeg.decode_jpeg_header(encode_jpeg(pixels, 90))[2:] == ("YCbCr", "420")
    assert encode_jpeg(pixels[:, ::-1], 90) == encode_jpeg(pixels[:, ::-1].copy(), 90)
    assert simplejpeg.decode_jpeg_header(encode_jpeg(pixels[..., 0], 90))[2] == "Gray"
    assert encode_jpeg(pixels[..., :1], 90) == encode_jpeg(pixels[..., 0], 90)
    for wrong in (pixels.astype(np.float32), pixels[..., :2], pixels[:0], pixels[np.newaxis]):
        with pytest.raises(ValueError, match="is no image"):
            encode_jpeg(wrong, 90)  # type: ignore[arg-type]  # what a transform may return


def test_damage_survives_pickling() -> None:
    damage = pickle.loads(pickle.dumps(DamagedImage("torn")))
    assert damage.problem == "torn" and str(damage) == "torn"
