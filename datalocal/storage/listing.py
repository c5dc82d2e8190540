"""What lies in a data set on one node: footers and label counts, read where the files are."""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from datalocal.errors import StorageError
from datalocal.spec.job import Columns
from datalocal.storage.files import Folder, is_hidden

_PAGE_SECONDS = 2.0
_PAGE_SHARDS = 1000
_SUFFIXES = {".parquet", ".parq", ".pq"}

LabelKind: TypeAlias = Literal["integer", "string"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardListing:
    """One Parquet file as its own node sees it; with `error`, only key and bytes mean something."""

    key: str
    bytes: int
    error: str = ""
    """Why the file is not a readable shard."""
    group_rows: tuple[int, ...] = ()
    group_bytes: tuple[int, ...] = ()
    """Bytes of each row group as stored, all columns."""
    group_starts: tuple[int, ...] = ()
    """Where each row group begins in the file."""
    columns: tuple[str, ...] = ()
    image_problem: str = ""
    """Why the image column cannot be read as images although it is there."""
    label_kind: LabelKind | None = None
    """None where the label column is not asked for, not there, or of another type (then see `label_problem`)."""
    label_problem: str = ""
    label_counts: Mapping[str, int] = field(default_factory=dict)
    """Rows of each label, by the label's text."""
    unlabelled_rows: int = 0
    classes: tuple[str, ...] = ()
    """Names of the integer labels, from the file's metadata."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """A data set on one node: shards sorted by key; none where the node has nothing of it."""

    node: str
    dataset: str
    shards: tuple[ShardListing, ...]


def shard_from_json(content: Mapping[str, Any]) -> ShardListing:
    """The inverse of `dataclasses.asdict`, after a trip through JSON."""
    tuples = ("group_rows", "group_bytes", "group_starts", "columns", "classes")
    return ShardListing(**{**content, **{key: tuple(content[key]) for key in tuples}})


def list_page(folder: Folder, dataset: str, columns: Columns, after: str) -> dict[str, Any]:
    """The shards with keys above `after`, as many as a short call allows: ``{"shards": [...], "more": bool}``.

    Pages, so that no call takes long however many shards there are, and a node that hangs is noticed in seconds.
    """
    base = folder.resolve(dataset)
    stop = time.monotonic() + _PAGE_SECONDS
    shards: list[dict[str, Any]] = []
    for key in sorted(key for key in _keys(base) if key > after):
        if shards and (len(shards) == _PAGE_SHARDS or time.monotonic() > stop):  # every page gets on by one at least
            return {"shards": shards, "more": True}
        found = _look(folder, dataset, key, columns)
        if found is not None:
            shards.append(asdict(found))
    return {"shards": shards, "more": False}


def list_all(folder: Folder, dataset: str, columns: Columns) -> Listing:
    """The whole data set on this node."""
    shards: list[ShardListing] = []
    more, after = True, ""
    while more:
        page = list_page(folder, dataset, columns, after)
        shards += [shard_from_json(shard) for shard in page["shards"]]
        more, after = page["more"], shards[-1].key if shards else ""
    return Listing(node=folder.node, dataset=dataset, shards=tuple(shards))


def datasets(folder: Folder) -> list[str]:
    """Every folder of the node that holds shards directly, sorted."""
    return sorted({str(Path(key).parent) for key in _keys(folder.data) if "/" in key})


def _keys(base: Path) -> Iterator[str]:
    """Paths below `base` of the files that may be shards."""
    for parent, folders, files in os.walk(base):
        folders[:] = [name for name in folders if not is_hidden(name)]
        inside = Path(parent).relative_to(base)
        for name in files:
            if not is_hidden(name) and _may_be_shard(Path(parent, name)):
                yield str(inside / name)


def _may_be_shard(file: Path) -> bool:
    """Parquet by its suffix, or by its first bytes where there is no suffix (as some writers name their parts)."""
    if file.suffix:
        return file.suffix in _SUFFIXES
    try:
        with file.open("rb") as content:
            return content.read(4) == b"PAR1"
    except OSError:
        return False


def _look(folder: Folder, dataset: str, key: str, columns: Columns) -> ShardListing | None:
    size_bytes = 0
    try:
        file = folder.resolve(f"{dataset}/{key}")
        status = file.stat()
        size_bytes = status.st_size
        # A shard never changes in place: the same inode, size and time is the same content, and its footer was read before.
        identity = (size_bytes, status.st_ino, status.st_mtime_ns)
        return _inspect(str(file), key, identity, columns.image, columns.label)
    except FileNotFoundError:  # deleted meanwhile, or a dangling link
        return None
    except StorageError as error:
        return ShardListing(key=key, bytes=size_bytes, error=error.message)
    except (pa.ArrowException, OSError, ValueError) as error:
        return ShardListing(key=key, bytes=size_bytes, error=str(error).partition("\n")[0])


@functools.lru_cache(maxsize=20_000)
def _inspect(file: str, key: str, identity: tuple[int, int, int], image: str, label: str | None) -> ShardListing:
    """What is in the file; raises what pyarrow raises (an error is not remembered: it may have been the disk's)."""
    with pq.ParquetFile(file) as parquet:
        return describe(parquet, key, identity[0], image, label)


def describe(parquet: pq.ParquetFile, key: str, size_bytes: int, image: str, label: str | None) -> ShardListing:
    """The shard `key` of `size_bytes`: its footer, and its labels where they are asked for. Raises what pyarrow raises."""
    footer, schema = parquet.metadata, parquet.schema_arrow
    groups = [footer.row_group(i) for i in range(footer.num_row_groups)]
    labels: dict[str, Any] = {}
    if label is not None and label in schema.names:
        labels = _count_labels(parquet, schema.field(label).type, label) | {"classes": _class_names(schema, label)}
    return ShardListing(
        key=key,
        bytes=size_bytes,
        group_rows=tuple(group.num_rows for group in groups),
        group_bytes=tuple(
            sum(group.column(i).total_compressed_size for i in range(group.num_columns)) for group in groups
        ),
        group_starts=tuple(
            min(
                (_chunk_start(group.column(i)) for i in range(group.num_columns)),
                default=0,
            )
            for group in groups
        ),
        columns=tuple(schema.names),
        image_problem=_image_problem(schema.field(image).type) if image in schema.names else "",
        **labels,
    )


def _chunk_start(chunk: pq.ColumnChunkMetaData) -> int:
    return int(chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset)


def _image_problem(type_: pa.DataType) -> str:
    if pa.types.is_struct(type_):
        names = [type_.field(i).name for i in range(type_.num_fields)]
        if "bytes" not in names:
            return f"is a struct of {', '.join(names)}, without `bytes`"
        type_ = type_.field("bytes").type
    if isinstance(type_, pa.FixedShapeTensorType):
        type_ = type_.storage_type
    if pa.types.is_fixed_size_list(type_) and _is_number(type_.value_type):
        return ""
    if pa.types.is_binary(type_) or pa.types.is_large_binary(type_) or pa.types.is_binary_view(type_):
        return ""
    return f"has the type {type_}; images are binary, a struct with binary `bytes`, or a fixed-size list of numbers"


def _is_number(type_: pa.DataType) -> bool:
    return bool(pa.types.is_integer(type_) or pa.types.is_floating(type_))


def _count_labels(parquet: pq.ParquetFile, type_: pa.DataType, label: str) -> dict[str, Any]:
    value_type = type_.value_type if pa.types.is_dictionary(type_) else type_
    if pa.types.is_integer(value_type) or pa.types.is_boolean(value_type):
        kind, target = "integer", pa.int64()
    elif pa.types.is_string(value_type) or pa.types.is_large_string(value_type) or pa.types.is_string_view(value_type):
        kind, target = "string", pa.string()
    else:
        return {"label_problem": f"has the type {type_}; labels are integers or strings"}
    column = parquet.read(columns=[label]).column(0).cast(value_type).cast(target)
    counts = {str(pair["values"]): int(pair["counts"]) for pair in pc.value_counts(column.drop_null()).to_pylist()}
    return {"label_kind": kind, "label_counts": counts, "unlabelled_rows": column.null_count}


def _class_names(schema: pa.Schema, label: str) -> tuple[str, ...]:
    """Names of integer labels: datalocal's own metadata, else the ClassLabel feature of Hugging Face."""
    metadata = schema.metadata or {}
    try:
        own = json.loads(metadata.get(b"datalocal", b"{}")).get("classes")
        hugging_face = json.loads(metadata.get(b"huggingface", b"{}"))
        names = own or hugging_face.get("info", {}).get("features", {}).get(label, {}).get("names") or ()
        return tuple(str(name) for name in names)
    except (ValueError, AttributeError, TypeError):  # somebody else's metadata under the same key
        return ()
