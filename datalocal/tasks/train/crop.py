"""From an encoded image to its place in the batch: decode, crop the centre, resize only where that is needed."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import simplejpeg

from datalocal.tasks.images import DamagedImage, decode, decode_square
from datalocal.tasks.train.columns import EncodedImages

Pixels = npt.NDArray[np.uint8]


class DamagedRow(Exception):
    """Image `row` of the row group cannot be used; `problem` says why."""

    def __init__(self, row: int, damage: DamagedImage) -> None:
        super().__init__(str(damage))
        self.row = row


class Cropper:
    """Decodes images of row groups to one size. Thread-safe.

    The rule: an image whose short side lies in [S, 2 S) is cropped at its centre. Any other is first resized so that its
    short side is S (bilinear; JPEGs at least twice as large are decoded at 1/2, 1/4 or 1/8 before), then cropped.
    """

    def __init__(self, size: int, max_pixels: int) -> None:
        self._size, self._max_pixels = size, max_pixels
        self._own = threading.local()

    def decode(self, images: EncodedImages, rows: npt.NDArray[np.int64], places: Sequence[int], out: Pixels) -> None:
        """Decode images `rows` into `out[places]` (uint8 [n, S, S, 3], RGB). Raises DamagedRow."""
        size, data = self._size, images.data
        heights, widths = images.sizes[rows].T
        short = np.minimum(heights, widths)
        fast = (short >= size) & (short < 2 * size) & (heights * widths <= self._max_pixels)
        memory = self._memory(int(3 * (heights * widths * fast).max(initial=0)))
        tops, lefts = (heights - size) // 2, (widths - size) // 2
        whole = (heights == size) & (widths == size)
        # Plain integers, cut all at once: looking anything up per image would cost more than all else around decoding.
        table = np.stack(
            (rows, places, images.offsets[rows], images.offsets[rows + 1], fast, whole, tops, lefts), axis=1
        )
        for row, place, begin, end, is_fast, is_whole, top, left in table.tolist():
            encoded = data[begin:end]
            try:
                if is_whole:  # what preprocessing to this size wrote: nothing to crop, nothing to copy
                    simplejpeg.decode_jpeg(encoded, "RGB", buffer=out[place])
                    continue
                if is_fast:
                    image = simplejpeg.decode_jpeg(encoded, "RGB", buffer=memory)
                    out[place] = image[top : top + size, left : left + size]
                    continue
            except ValueError:  # the careful way says what is the matter
                pass
            try:
                out[place] = decode_square(encoded, size, max_pixels=self._max_pixels)
            except DamagedImage as damage:
                raise DamagedRow(row, damage) from None

    def _memory(self, needed_bytes: int) -> Pixels:
        """This thread's scratch memory: a fresh 200 kB array per image would be page faults, not decoding."""
        memory: Pixels | None = getattr(self._own, "memory", None)
        if memory is None or len(memory) < needed_bytes:
            memory = self._own.memory = np.empty(needed_bytes, np.uint8)
        return memory


def decode_whole(images: EncodedImages, row: int, *, max_pixels: int) -> Pixels:
    """The whole image, uint8 [H, W, 3], RGB. Raises DamagedRow."""
    try:
        return decode(images.view(row), max_pixels=max_pixels)
    except DamagedImage as damage:
        raise DamagedRow(row, damage) from None
