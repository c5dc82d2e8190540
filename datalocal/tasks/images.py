"""Encoded images to RGB arrays and back: JPEG by libjpeg-turbo, the rest by Pillow; whatever is damaged says so."""

from __future__ import annotations

import io
from typing import Any, TypeAlias

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

from datalocal.tasks.orientation import ORIENTATION_TAG, SIDEWAYS, jpeg_orientation, oriented

Pixels: TypeAlias = npt.NDArray[np.uint8]
Encoded: TypeAlias = bytes | bytearray | memoryview | Pixels
"""Anything with contiguous bytes, a pyarrow buffer too."""

cv2.setNumThreads(1)  # nodes run one thread per core already; OpenCV's own threads would fight them

_JPEG_START = b"\xff\xd8"

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""What Pillow may try. Its other readers (EPS runs a program) have no business with bytes from a data set."""

_HARMLESS = "extraneous bytes before marker 0xd9"
"""The one complaint that comes after the last pixel: padding before the end of the image, as some cameras write."""


_STRIP = 4
"""Of an image longer than so many times its short side only the middle is resized: a line of pixels would fill the memory."""


class DamagedImage(Exception):
    """Bytes that are no usable image; `problem` says why."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem


def decode(data: Encoded | None, *, max_pixels: int, min_side: int | None = None) -> Pixels:
    """The image as uint8 [height, width, 3], RGB, upright: EXIF orientation is applied as Pillow's `exif_transpose` does.

    More than `max_pixels` are refused from the header, before a pixel is decoded. With `min_side`, a JPEG of which both
    sides are at least twice that is decoded at 1/2, 1/4 or 1/8, no side below `min_side`. Transparent images lie on white,
    16-bit ones are scaled to 8 bits, of an animation it is the first frame. Raises
    DamagedImage: no bytes, not an image of a known format, truncated or corrupt, too many pixels.
    """
    view = _view(data)
    if bytes(view[:2]) == _JPEG_START:
        return _decode_jpeg(view, max_pixels, min_side)
    return _decode_by_pillow(view, max_pixels)


def decode_square(data: Encoded | None, side: int, *, max_pixels: int) -> Pixels:
    """The image as training sees it with `image_size: side`: uint8 [side, side, 3], RGB, its centre.

    An image whose short side lies in [S, 2 S) is cropped. Any other is first resized so that its short side is S (bilinear;
    JPEGs at least twice as large are decoded at 1/2, 1/4 or 1/8 before). Raises DamagedImage.
    """
    view, shrinks = _view(data), False
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(view)
        shrinks = min(height, width) >= 2 * side
    except ValueError:  # no JPEG, or one with a fault
        pass
    image = decode(view, max_pixels=max_pixels, min_side=side if shrinks else None)
    short = min(image.shape[:2])
    if shrinks or not side <= short < 2 * side:
        image = _centre(image, _STRIP * short, _STRIP * short)
        height, width = image.shape[:2]
        height, width = max(side, round(height * side / short)), max(side, round(width * side / short))
        image = np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)
    return _centre(image, side, side)


def _centre(image: Pixels, height: int, width: int) -> Pixels:
    """A view of the middle, at most this large."""
    top, left = max(0, image.shape[0] - height) // 2, max(0, image.shape[1] - width) // 2
    return image[top : top + height, left : left + width]


def image_size(data: Encoded | None) -> tuple[int, int]:
    """(height, width) as `decode` would give them, from the header alone. Raises DamagedImage."""
    view = _view(data)
    if bytes(view[:2]) == _JPEG_START:
        try:
            height, width, _, _ = simplejpeg.decode_jpeg_header(view)
        except ValueError:
            pass  # a JPEG that libjpeg-turbo's simple interface does not know: Pillow may
        else:
            return (width, height) if jpeg_orientation(view) in SIDEWAYS else (height, width)
    with _opened(view) as image:
        # Pillow tells a TIFF's size upright already.
        turned = image.format != "TIFF" and image.getexif().get(ORIENTATION_TAG, 1) in SIDEWAYS
        return (image.width, image.height) if turned else (image.height, image.width)


def encode_jpeg(pixels: Pixels, quality: int) -> bytes:
    """A JPEG of uint8 [height, width, 3] RGB (4:2:0), or of [height, width] or [height, width, 1] grey.

    Raises ValueError for another shape or type.
    """
    if pixels.ndim == 2:
        pixels = pixels[:, :, np.newaxis]
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] not in (1, 3) or 0 in pixels.shape:
        raise ValueError(f"{pixels.dtype} of shape {pixels.shape} is no image: expected uint8 [height, width, 3]")
    if not pixels.flags.c_contiguous:
        pixels = np.ascontiguousarray(pixels)
    if pixels.shape[2] == 1:
        return bytes(simplejpeg.encode_jpeg(pixels, quality=quality, colorspace="GRAY", colorsubsampling="Gray"))
    encoded: bytes = simplejpeg.encode_jpeg(pixels, quality=quality, colorspace="RGB", colorsubsampling="420")
    return encoded


def _view(data: Any) -> memoryview:
    if data is None:
        raise DamagedImage("no bytes")
    view = memoryview(data)
    if view.nbytes == 0:
        raise DamagedImage("no bytes")
    return view.cast("B")


def _check_pixels(height: int, width: int, max_pixels: int) -> None:
    if height * width > max_pixels:
        raise DamagedImage(f"{width} x {height} = {height * width} pixels, more than the {max_pixels} that are allowed")


def _decode_jpeg(view: memoryview, max_pixels: int, min_side: int | None) -> Pixels:
    try:
        height, width, space, _ = simplejpeg.decode_jpeg_header(view)
    except ValueError:  # an unusual subsampling, say: Pillow reads some of what the simple interface does not
        return _decode_by_pillow(view, max_pixels)
    _check_pixels(height, width, max_pixels)
    if space in ("CMYK", "YCCK"):
        _jpeg_pixels(view, {"colorspace": "CMYK"})  # Pillow would not notice data that is corrupt in the middle
        return _decode_by_pillow(view, max_pixels)
    scaled = min_side is not None and min(height, width) >= 2 * min_side
    options: dict[str, Any] = {"min_height": min_side, "min_width": min_side, "min_factor": 2} if scaled else {}
    return oriented(_jpeg_pixels(view, {"colorspace": "RGB", **options}), jpeg_orientation(view))


def _jpeg_pixels(view: memoryview, options: dict[str, Any]) -> Pixels:
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(view, **options)
    except ValueError as error:
        if _HARMLESS not in str(error):
            raise DamagedImage(f"JPEG: {error}") from None
        pixels = simplejpeg.decode_jpeg(view, strict=False, **options)
    return pixels


class _opened:  # noqa: N801  # a context manager, used like a function
    """An image opened by Pillow; whatever goes wrong inside the context is a DamagedImage."""

    def __init__(self, view: memoryview) -> None:
        self._view = view

    def __enter__(self) -> Image.Image:
        try:
            self._image = Image.open(io.BytesIO(self._view), formats=_FORMATS)
        except UnidentifiedImageError:
            start = bytes(self._view[:8]).hex(" ")
            raise DamagedImage(f"not an image of a known format (begins with {start})") from None
        except Exception as error:
            raise _damaged(error) from None
        return self._image

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._image.close()
        if isinstance(error, Exception) and not isinstance(error, DamagedImage):
            raise _damaged(error) from None  # readers fed with garbage raise anything from SyntaxError to struct.error


def _damaged(error: Exception) -> DamagedImage:
    return DamagedImage(f"{type(error).__name__}: {error}")


def _decode_by_pillow(view: memoryview, max_pixels: int) -> Pixels:
    with _opened(view) as image:
        _check_pixels(image.height, image.width, max_pixels)
        image.load()
        return _rgb(ImageOps.exif_transpose(image))


def _rgb(image: Image.Image) -> Pixels:
    if image.mode.startswith("I") or image.mode == "F":
        return _from_wide(image)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(ground, image)
    return np.array(image if image.mode == "RGB" else image.convert("RGB"), dtype=np.uint8)


def _from_wide(image: Image.Image) -> Pixels:
    """16 bits a pixel to 8, by the upper byte as Pillow does for 16-bit colours (`convert` would clip at 255)."""
    values = np.asarray(image)
    if values.dtype.kind == "f" or values.min() < 0 or values.max() > 0xFFFF:
        raise DamagedImage(f"pixels of more than 16 bits (mode {image.mode}), of which nobody says what is white")
    grey = (values.astype(np.uint16) >> 8).astype(np.uint8)
    return np.repeat(grey[:, :, np.newaxis], 3, axis=2)
