"""Image and label columns of a row group as arrays: views into Arrow's buffers, no copy per image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from datalocal.tasks.train.headers import plain_jpeg_sizes

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedImages:
    """Encoded images of one row group."""

    data: Bytes
    """All images behind each other."""
    offsets: npt.NDArray[np.int64]
    """[rows + 1] into `data`."""
    sizes: npt.NDArray[np.int64]
    """[rows, 2] height and width of JPEGs that need no care (orientation, CMYK); zeros for the others."""

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def view(self, row: int) -> Bytes:
        """The bytes of image `row`, without a copy."""
        return self.data[self.offsets[row] : self.offsets[row + 1]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrays:
    """Images or features that need no decoding."""

    values: npt.NDArray[Any]
    """[rows, ...]"""

    def __len__(self) -> int:
        return len(self.values)


def parquet_columns(schema: pa.Schema, image: str, label: str | None) -> list[str]:
    """What to read: of an image struct only its `bytes`."""
    of_struct = pa.types.is_struct(schema.field(image).type)
    return [f"{image}.bytes" if of_struct else image] + ([label] if label else [])


def images_of(column: pa.ChunkedArray) -> EncodedImages | Arrays:
    """The image column of one row group. Raises ValueError saying what is wrong with it."""
    array = column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)
    if isinstance(array, pa.ChunkedArray):  # combine_chunks keeps more than one chunk when one would be too large
        raise ValueError("a row group of more than 2 GB; write smaller row groups")
    if pa.types.is_struct(array.type):
        array = array.field("bytes")
    shape: tuple[int, ...] | None = None
    if isinstance(array, pa.FixedShapeTensorArray):
        shape, array = tuple(array.type.shape), array.storage
    if array.null_count:
        row = pc.index(array.is_null(), True).as_py()
        raise ValueError(f"row {row} of the row group has no image bytes")
    if pa.types.is_fixed_size_list(array.type):
        values = array.flatten().to_numpy(zero_copy_only=False)
        return Arrays(values=values.reshape(len(array), *(shape or (array.type.list_size,))))
    return _encoded(array)


def _encoded(array: pa.Array) -> EncodedImages:
    if not pa.types.is_binary(array.type):
        if not (pa.types.is_large_binary(array.type) or pa.types.is_binary_view(array.type)):
            raise ValueError(f"type {array.type}, expected binary, a struct with `bytes`, or a fixed-size list")
        array = array.cast(pa.large_binary())
    width = np.dtype(np.int32 if pa.types.is_binary(array.type) else np.int64)
    _, offset_buffer, data_buffer = array.buffers()
    raw = np.frombuffer(offset_buffer, dtype=width, count=len(array) + 1, offset=array.offset * width.itemsize)
    data = np.frombuffer(data_buffer, dtype=np.uint8) if data_buffer is not None else np.empty(0, np.uint8)
    offsets = raw.astype(np.int64)
    return EncodedImages(data=data, offsets=offsets, sizes=plain_jpeg_sizes(data, offsets))


def class_numbers(column: pa.ChunkedArray, labels: Sequence[str]) -> npt.NDArray[np.int64]:
    """[rows] class numbers: the position of each label in `labels`.

    Integers whose texts are listed in numeric order are looked up by their text; where `labels` are names, the integer is
    the position itself. Raises ValueError naming the first label that is not known.
    """
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if pa.types.is_integer(column.type) or pa.types.is_boolean(column.type):
        values = column.cast(pa.int64()).to_numpy()
        known = _integer_labels(labels)
        if column.null_count == 0 and known is not None:
            return _look_up(values, known)
        if column.null_count == 0 and bool(((values >= 0) & (values < max(len(labels), 1))).all() if labels else True):
            return np.ascontiguousarray(values, dtype=np.int64)
    found = pc.index_in(column.cast(pa.string()), value_set=pa.array(list(labels), pa.string()))
    if found.null_count:
        row = pc.index(found.is_null(), True).as_py()
        raise ValueError(
            f"row {row} of the row group has the label {column[row].as_py()!r}, which the catalog does not list"
        )
    return np.asarray(found.to_numpy(), dtype=np.int64)


def _integer_labels(labels: Sequence[str]) -> npt.NDArray[np.int64] | None:
    """The labels as integers when that is what they are (in numeric order), else None."""
    try:
        known = np.array([int(label) for label in labels], dtype=np.int64)
    except ValueError:
        return None
    return known if len(known) and bool((np.diff(known) > 0).all()) else None


def _look_up(values: npt.NDArray[np.int64], known: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    position = np.minimum(np.searchsorted(known, values), len(known) - 1)
    wrong = np.flatnonzero(known[position] != values)
    if len(wrong):
        raise ValueError(
            f"row {wrong[0]} of the row group has the label {values[wrong[0]]}, which the catalog does not list"
        )
    return position.astype(np.int64)
