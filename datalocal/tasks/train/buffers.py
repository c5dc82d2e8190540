"""Batch memory that is used again as soon as nobody holds it: no page faults per batch, and no batch overwritten in use."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Allocate = Callable[[tuple[int, ...], np.dtype[Any]], npt.NDArray[Any]]


def plain_memory(shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Ordinary memory."""
    return np.empty(shape, dtype)


def pinned_memory(shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Page-locked memory, from which a copy to the GPU overlaps with computing."""
    import torch

    pinned: npt.NDArray[Any] = torch.empty(
        shape, dtype=torch.from_numpy(np.empty(0, dtype)).dtype, pin_memory=True
    ).numpy()
    return pinned


class BatchMemory:
    """Arrays of one shape. `take` gives one that nobody else refers to; a view or a tensor made from it counts.

    Used from one thread; what others hold may be let go of in any thread.
    """

    _UNUSED = 3  # references of a free array inside `take`: the list, the loop variable, getrefcount's argument

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any], allocate: Allocate = plain_memory) -> None:
        self._shape, self._dtype, self._allocate = shape, dtype, allocate
        self._arrays: list[npt.NDArray[Any]] = []

    def take(self) -> npt.NDArray[Any]:
        """An array of the shape, with whatever it holds."""
        for array in self._arrays:
            if sys.getrefcount(array) <= self._UNUSED:
                return array
        fresh = self._allocate(self._shape, self._dtype)
        self._arrays.append(fresh)
        return fresh

    def __len__(self) -> int:
        return len(self._arrays)
