"""Parquet with an image column: plain binary, or a struct of bytes and path as Hugging Face's datasets write it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from datalocal.errors import DatasetError
from datalocal.ingest.folder import read_bytes
from datalocal.ingest.model import Sample

PARQUET_SUFFIXES = (".parquet", ".parq", ".pq")

_ROWS_AT_A_TIME = 32
_BUFFER_BYTES = 1 << 20

_SPLIT = re.compile(r"^([A-Za-z][\w.]*?)-\d{5}-of-\d{5}$")
"""`train-00000-of-00002.parquet`, as on Hugging Face's hub."""


class ParquetSource:
    """`image` and `label` name the columns; by default they are found: `image`, else the only column that can hold images;
    the only ClassLabel of Hugging Face's metadata, else `label`.

    A label column of texts gives the class names; integers stay, with the names that the metadata declare. A `path` column
    is used where there is one. Everything else is carried over with its type, and the split that file names tell. A null
    image with a path is read from the file system, below the source folder only. Raises DatasetError.
    """

    def __init__(self, root: Path, names: list[str], *, image: str | None, label: str | None) -> None:
        self._root, self._names = root, names
        self._schema, self.images = self._same_schema()
        self._image = image or self._find_image()
        if self._image not in self._schema.names:
            raise self._missing("image", self._image)
        self._struct = pa.types.is_struct(self._schema.field(self._image).type)
        problem = _image_problem(self._schema.field(self._image).type)
        if problem:
            raise DatasetError(f"{root}: the column {self._image!r} {problem}")
        self._label = self._find_label(label)
        self.labelled = self._label is not None
        self._path = "path" if "path" in self._schema.names and _is_text(self._schema.field("path").type) else None
        self._splits = self._split_names()
        used = {self._image, self._label, self._path}
        fields = [field for field in self._schema if field.name not in used]
        if self._splits:
            fields.append(pa.field("split", pa.string()))
        self.carried = pa.schema([field.remove_metadata() for field in fields])
        self._text_labels = self._label is not None and _is_text(self._schema.field(self._label).type)
        self.classes = self._class_names()

    def samples(self) -> Iterator[Sample]:
        for name in self._names:
            with self._open(name) as file:
                row = 0
                try:
                    for batch in file.iter_batches(_ROWS_AT_A_TIME, use_threads=False):
                        yield from self._from_batch(name, row, batch)
                        row += batch.num_rows
                except (pa.ArrowException, OSError) as error:
                    raise self._unreadable(name, error) from None

    def _from_batch(self, name: str, first: int, batch: pa.RecordBatch) -> Iterator[Sample]:
        image = batch.column(self._image)
        data = pc.struct_field(image, "bytes") if self._struct else image
        paths = self._paths(batch, image)
        labels = batch.column(self._label).to_pylist() if self._label else [None] * batch.num_rows
        kept = [column for column in self.carried.names if column in batch.schema.names]
        carried = batch.select(kept).to_pylist() if kept else [{}] * batch.num_rows
        extra = {"split": self._splits[name]} if self._splits else {}
        for row in range(batch.num_rows):
            content, problem = data[row].as_py(), ""
            if content is None:
                content, problem = self._from_path(name, paths[row])
            yield Sample(
                image=content,
                label=labels[row],
                path=paths[row] or f"{name}#{first + row}",
                source=name,
                row=first + row,
                problem=problem,
                carried={**carried[row], **extra},
            )

    def _paths(self, batch: pa.RecordBatch, image: pa.Array) -> Sequence[str | None]:
        """The image struct's own path, else the `path` column's."""
        own: list[str | None] = [None] * batch.num_rows
        if self._struct and "path" in [field.name for field in image.type]:
            own = pc.struct_field(image, "path").to_pylist()
        column = batch.column(self._path).to_pylist() if self._path else own
        return [mine or other for mine, other in zip(own, column, strict=True)]

    def _from_path(self, name: str, path: str | None) -> tuple[bytes | None, str]:
        if not path:
            return None, "neither bytes nor a path"
        top = self._root.resolve()
        for folder in (self._root / PurePosixPath(name).parent, self._root):
            try:
                file = (folder / path).resolve()
            except (OSError, ValueError) as error:
                return None, f"the path {path!r} cannot be followed: {error}"
            if not file.is_relative_to(top):
                return None, f"no bytes, and the path {path!r} leads out of the data set's folder"
            if file.is_file():
                return read_bytes(file)
        return None, f"no bytes, and there is no file {path!r} below the data set's folder"

    # -- what the columns are ----------------------------------------------------------------------------------------------

    def _open(self, name: str) -> pq.ParquetFile:
        try:
            # Page by page: otherwise pyarrow holds all row groups of the file, and single ones are as large as they like.
            return pq.ParquetFile(self._root / name, buffer_size=_BUFFER_BYTES, pre_buffer=False)
        except (pa.ArrowException, OSError) as error:
            raise self._unreadable(name, error) from None

    def _unreadable(self, name: str, error: Exception) -> DatasetError:
        return DatasetError(
            f"{self._root / name} cannot be read as Parquet: {str(error).splitlines()[0]}",
            "restore the file, or take it out of the source",
        )

    def _same_schema(self) -> tuple[pa.Schema, int]:
        first: pa.Schema | None = None
        rows = 0
        for name in self._names:
            with self._open(name) as file:
                schema = file.schema_arrow
                rows += file.metadata.num_rows
            if first is None:
                first = schema
            elif not first.equals(schema):
                different = sorted({str(field) for field in first} ^ {str(field) for field in schema})
                raise DatasetError(
                    f"{self._root / name} has other columns than {self._names[0]}: {'; '.join(different)}",
                    "ingest files of different columns as different data sets",
                )
        assert first is not None, "there is a file"
        return first, rows

    def _missing(self, key: str, name: str) -> DatasetError:
        return DatasetError(
            f"{self._root}: there is no column {name!r} to take as {key}; columns: {', '.join(self._schema.names)}"
        )

    def _find_image(self) -> str:
        fitting: list[str] = [field.name for field in self._schema if not _image_problem(field.type)]
        if "image" in fitting or len(fitting) != 1:
            if "image" not in fitting and "image" not in self._schema.names:
                raise DatasetError(
                    f"{self._root}: {'several columns' if fitting else 'no column'} can hold images "
                    f"({', '.join(fitting) or 'columns: ' + ', '.join(self._schema.names)})",
                    "say which one holds them"
                    if fitting
                    else "an image column is binary, or a struct with binary `bytes`",
                )
            return "image"
        return fitting[0]

    def _find_label(self, label: str | None) -> str | None:
        names = self._schema.names
        if label is not None:
            if label not in names:
                raise self._missing("label", label)
            if not _is_label(self._schema.field(label).type):
                raise DatasetError(
                    f"{self._root}: the column {label!r} is {self._schema.field(label).type}; labels are integers or texts"
                )
            return label
        declared = [name for name, feature in self._features().items() if "names" in feature and name in names]
        found = declared[0] if len(declared) == 1 and "label" not in declared else "label"
        return found if found in names and _is_label(self._schema.field(found).type) else None

    def _features(self) -> Mapping[str, Mapping[str, Any]]:
        """Hugging Face's description of the columns."""
        try:
            content = json.loads((self._schema.metadata or {}).get(b"huggingface", b"{}"))
            features = content["info"]["features"]
            return {name: feature for name, feature in features.items() if isinstance(feature, dict)}
        except (ValueError, KeyError, TypeError, AttributeError):  # none, or somebody else's metadata
            return {}

    def _class_names(self) -> tuple[str, ...]:
        if self._label is None:
            return ()
        if self._text_labels:
            seen: set[str] = set()
            for name in self._names:
                with self._open(name) as file:
                    try:
                        for batch in file.iter_batches(65_536, columns=[self._label], use_threads=False):
                            seen.update(label for label in pc.unique(batch.column(0)).to_pylist() if label is not None)
                    except (pa.ArrowException, OSError) as error:
                        raise self._unreadable(name, error) from None
            return tuple(sorted(seen))
        try:
            own = json.loads((self._schema.metadata or {}).get(b"datalocal", b"{}")).get("classes")
        except (ValueError, AttributeError):
            own = None
        names = own or self._features().get(self._label, {}).get("names") or ()
        return tuple(str(name) for name in names)

    def _split_names(self) -> dict[str, str]:
        """The split of each file, when every file's name tells one and there is no such column."""
        found = {name: _SPLIT.match(PurePosixPath(name).stem) for name in self._names}
        if "split" in self._schema.names or not all(found.values()):
            return {}
        return {name: match[1] for name, match in found.items() if match}


def _value_type(type_: pa.DataType) -> pa.DataType:
    return type_.value_type if pa.types.is_dictionary(type_) else type_


def _is_text(type_: pa.DataType) -> bool:
    type_ = _value_type(type_)
    return bool(pa.types.is_string(type_) or pa.types.is_large_string(type_) or pa.types.is_string_view(type_))


def _is_label(type_: pa.DataType) -> bool:
    type_ = _value_type(type_)
    return bool(_is_text(type_) or pa.types.is_integer(type_) or pa.types.is_boolean(type_))


def _image_problem(type_: pa.DataType) -> str:
    """Why a column of this type cannot hold images; empty when it can."""
    if pa.types.is_struct(type_):
        fields = {type_.field(i).name: type_.field(i).type for i in range(type_.num_fields)}
        if "bytes" not in fields:
            return f"is a struct of {', '.join(fields)}, without `bytes`"
        type_ = fields["bytes"]
    if pa.types.is_binary(type_) or pa.types.is_large_binary(type_) or pa.types.is_binary_view(type_):
        return ""
    return f"is {type_}; images are binary, or a struct with binary `bytes`"
