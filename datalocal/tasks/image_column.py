"""The image column of a shard, row by row, without copying it."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc


@dataclass(frozen=True, slots=True, kw_only=True)
class Images:
    """Encoded images of some rows."""

    encoded: list[pa.Buffer | None]
    """[rows] a view into Arrow's memory; None where there are no bytes."""
    paths: list[str]
    """[rows] where each image came from, as far as the shard says; else empty."""

    def __len__(self) -> int:
        return len(self.encoded)


def problem_of(type_: pa.DataType) -> str:
    """Why a column of this type holds no encoded images; empty when it does."""
    if pa.types.is_struct(type_):
        if type_.get_field_index("bytes") < 0:
            return f"is {type_}, a struct without `bytes`"
        type_ = type_.field("bytes").type
    if pa.types.is_binary(type_) or pa.types.is_large_binary(type_) or pa.types.is_binary_view(type_):
        return ""
    return f"is {type_}; encoded images are binary, or a struct with `bytes`"


def images_of(table: pa.Table, column: str) -> Images:
    """The images of `table`; paths from the struct's `path`, else from a column `path`."""
    images = table.column(column)
    paths = _struct_paths(images)
    if pa.types.is_struct(images.type):
        images = pc.struct_field(images, "bytes")
    if paths is None and "path" in table.column_names:
        paths = table.column("path")
    return Images(
        encoded=[view for chunk in images.chunks for view in _views(chunk)],
        paths=["" if path is None else str(path) for path in paths.to_pylist()]
        if paths is not None
        else [""] * len(images),
    )


def with_images(schema: pa.Schema, column: str, type_: pa.DataType) -> pa.Schema:
    """`schema` with another type for the images, and a column `path` when the struct had one and the shard has none."""
    at = schema.get_field_index(column)
    before = schema.field(at)
    schema = schema.set(at, pa.field(column, type_, metadata=_plain(before.metadata)))
    if pa.types.is_struct(before.type) and before.type.get_field_index("path") >= 0 and "path" not in schema.names:
        schema = schema.append(pa.field("path", pa.string()))
    return schema


def _struct_paths(images: pa.ChunkedArray) -> pa.ChunkedArray | None:
    if pa.types.is_struct(images.type) and images.type.get_field_index("path") >= 0:
        return pc.struct_field(images, "path")
    return None


def _views(array: pa.Array) -> list[pa.Buffer | None]:
    """A view per row; a scalar of each row would be a copy of the image."""
    if pa.types.is_binary_view(array.type):
        array = array.cast(pa.large_binary())
    if len(array) == 0:
        return []
    width = np.dtype(np.int32 if pa.types.is_binary(array.type) else np.int64)
    _, offset_buffer, data = array.buffers()
    offsets = np.frombuffer(offset_buffer, width, count=len(array) + 1, offset=array.offset * width.itemsize).tolist()
    if data is None:  # not one byte in any row
        data = pa.py_buffer(b"")
    views = [data.slice(start, stop - start) for start, stop in pairwise(offsets)]
    if not array.null_count:
        return views
    return [view if valid else None for view, valid in zip(views, array.is_valid().to_pylist(), strict=True)]


def _plain(metadata: dict[bytes, bytes] | None) -> dict[bytes, bytes] | None:
    """Field metadata without what describes the old type (an extension's name)."""
    kept: Any = {key: value for key, value in (metadata or {}).items() if not key.startswith((b"ARROW:", b"PARQUET:"))}
    return kept or None
