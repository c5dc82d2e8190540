"""The transform of the resize jobs: what a user's own preprocessing looks like.

A transform gets a list of images (uint8 [height, width, 3], RGB, upright) and the device it may use, and returns as many
images, arrays or features, in the same order. Its keyword arguments come from `preprocess.arguments` in the job file.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]


def shrink(images: Sequence[Pixels], device: str, *, side: int = 256) -> list[Pixels]:
    """Resize each image so that its short side is `side` pixels; smaller ones stay as they are."""
    return [_shrink(image, side) for image in images]


def _shrink(image: Pixels, side: int) -> Pixels:
    height, width = image.shape[:2]
    short = min(height, width)
    if short <= side:
        return image
    size = (max(side, round(width * side / short)), max(side, round(height * side / short)))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_LINEAR), dtype=np.uint8)
