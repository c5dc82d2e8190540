"""From an encoded image to its place in the batch: decode, crop the centre, resize only where that is needed."""

from __future__ import annotations

import threading

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg

from datalocal.tasks.images import decode

Pixels = npt.NDArray[np.uint8]

_scratch = threading.local()


def decode_into(data: Pixels, plain: bool, out: Pixels, *, max_pixels: int) -> None:
    """Decode one image into `out` (uint8 [S, S, 3], RGB).

    The rule: an image whose short side lies in [S, 2 S) is cropped at its centre. Any other is first resized so that its
    short side is S (bilinear; JPEGs at least twice as large are decoded at 1/2, 1/4 or 1/8 before), then cropped.
    `plain` says that the JPEG's header needs no care, so that it takes the fast path. Raises DamagedImage.
    """
    size = out.shape[0]
    image: Pixels | None = None
    shrinks = False
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(data)
        shrinks = min(height, width) >= 2 * size
        if plain and height * width <= max_pixels and space != "CMYK":
            if height == width == size:  # what preprocessing to this size wrote: nothing to crop, nothing to copy
                simplejpeg.decode_jpeg(data, "RGB", buffer=out)
                return
            image = _fast(data, height * width * 3, size if shrinks else 0)
    except ValueError:  # no JPEG, or one with a fault: the careful way says which
        pass
    if image is None:
        image = decode(data, max_pixels=max_pixels, min_side=size if shrinks else None)
    height, width = image.shape[:2]
    short = min(height, width)
    if shrinks or not size <= short < 2 * size:
        height, width = max(size, round(height * size / short)), max(size, round(width * size / short))
        image = np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)
    top, left = (height - size) // 2, (width - size) // 2
    out[:] = image[top : top + size, left : left + size]


def decode_whole(data: Pixels, *, max_pixels: int) -> Pixels:
    """The whole image, uint8 [H, W, 3], RGB. Raises DamagedImage."""
    return decode(data, max_pixels=max_pixels)


def _fast(data: Pixels, needed: int, minimum: int) -> Pixels:
    """The decoded JPEG in this thread's scratch memory of at least `needed` bytes. Raises ValueError.

    `minimum`: side below which scaled decoding must not go; 0 decodes the whole image.
    """
    memory: Pixels | None = getattr(_scratch, "memory", None)
    if memory is None or memory.size < needed:  # a fresh 200 kB array per image would be page faults, not decoding
        memory = np.empty(needed, np.uint8)
        _scratch.memory = memory
    if not minimum:
        whole: Pixels = simplejpeg.decode_jpeg(data, "RGB", buffer=memory)
        return whole
    scaled: Pixels = simplejpeg.decode_jpeg(
        data, "RGB", min_height=minimum, min_width=minimum, min_factor=2.0, buffer=memory
    )
    return scaled
