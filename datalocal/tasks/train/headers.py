"""Width and height of many JPEGs at once, from their headers: what the fast path of decoding has to know beforehand."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]

_SEGMENTS = 16
"""Segments before the frame header that are looked through; a JPEG with more is one that needs care."""

_FRAMES = (0xC0, 0xC1, 0xC2)
"""Baseline, extended, progressive, all with Huffman codes."""

_CARE = (0xE1, 0xEE)
"""APP1 may hold an orientation (EXIF, XMP), APP14 says how CMYK and RGB are stored."""


def plain_jpeg_sizes(data: Bytes, offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """[n, 2] height and width of image i, the bytes `offsets[i]:offsets[i + 1]` of `data`; zeros for what needs care.

    Care needs whatever is no JPEG of 8 bits in grey or three colours, has EXIF, XMP or Adobe segments, or is cut short.
    """
    sizes = np.zeros((len(offsets) - 1, 2), np.int64)
    begins, ends = offsets[:-1], offsets[1:]
    images = np.flatnonzero(ends - begins >= 14)
    images = images[(data[begins[images]] == 0xFF) & (data[begins[images] + 1] == 0xD8)]
    at = begins[images] + 2
    for _ in range(_SEGMENTS):
        inside = at + 10 <= ends[images]
        images, at = images[inside], at[inside]
        marker, length = data[at + 1], _word(data, at + 2)
        segment = (data[at] == 0xFF) & ~np.isin(marker, _CARE)
        frame = segment & np.isin(marker, _FRAMES)
        usable = frame & (data[at + 4] == 8) & np.isin(data[at + 9], (1, 3))
        sizes[images[usable]] = np.stack([_word(data, at + 5), _word(data, at + 7)], axis=1)[usable]
        # DHT, DQT, DRI, APPn and comments come before the frame; anything else nobody expects there
        more = segment & ~frame & (np.isin(marker, (0xC4, 0xDB, 0xDD, 0xFE)) | ((marker >= 0xE0) & (marker <= 0xEF)))
        images, at = images[more], (at + 2 + length)[more]
        if not len(images):
            break
    return sizes


def _word(data: Bytes, at: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    return data[at].astype(np.int64) << 8 | data[at + 1]
