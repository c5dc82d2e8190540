"""EXIF orientation of a JPEG: libjpeg-turbo ignores it, and opening every file with Pillow to ask would cost too much."""

from __future__ import annotations

import io
import struct

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]

ORIENTATION_TAG = 0x0112
SIDEWAYS = (5, 6, 7, 8)
"""Orientations that exchange height and width."""
_SHORT = 3


def oriented(pixels: Pixels, orientation: int) -> Pixels:
    """`pixels` [height, width, 3] turned upright: the operations of Pillow's `exif_transpose`, contiguous."""
    if not 2 <= orientation <= 8:
        return pixels
    if orientation in SIDEWAYS:
        pixels = pixels.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def jpeg_orientation(data: memoryview) -> int:
    """The orientation (1 to 8) that the JPEG's EXIF or XMP gives; 1 where it gives none."""
    at, size, exif = 2, len(data), None
    while at + 4 <= size and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if not (0xE0 <= marker <= 0xEF or marker == 0xFE):  # neither APPn nor comment: the picture begins
            break
        length = data[at + 2] << 8 | data[at + 3]
        if marker == 0xE1:
            if exif is not None or bytes(data[at + 4 : at + 10]) != b"Exif\0\0":
                return _ask_pillow(data)  # XMP, or EXIF in several segments
            exif = data[at + 10 : at + 2 + length]
        at += 2 + length
    if exif is None:
        return 1
    found = _from_first_directory(exif)
    return _ask_pillow(data) if found is None else found


def _from_first_directory(exif: memoryview) -> int | None:
    """The tag where it lies as every camera writes it; None when somebody should look more closely."""
    try:
        order = {b"II*\0": "<", b"MM\0*": ">"}[bytes(exif[:4])]
        (first,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, first)
        for entry in range(first + 2, first + 2 + 12 * count, 12):
            tag, type_, values, value = struct.unpack_from(order + "HHIH", exif, entry)
            if tag == ORIENTATION_TAG:
                return int(value) if type_ == _SHORT and values == 1 else None
    except (KeyError, struct.error):
        return None
    return 1


def _ask_pillow(data: memoryview) -> int:
    try:
        with Image.open(io.BytesIO(data), formats=("JPEG",)) as image:
            value = image.getexif().get(ORIENTATION_TAG, 1)
    except Exception:  # broken metadata round a sound picture; readers fed with garbage raise anything
        return 1
    return value if isinstance(value, int) else 1
