"""WebDataset tars: `key.jpg` beside `key.cls` or `key.json`, read in order without unpacking."""

from __future__ import annotations

import json
import re
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias

import pyarrow as pa

from datalocal.errors import DatasetError
from datalocal.ingest.folder import IMAGE_SUFFIXES
from datalocal.ingest.model import Sample

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")

_TEXTS = (".json", ".cls", ".txt")
_TEXT_BYTES = 1 << 20
"""Labels and metadata of one image; whoever has more has something else."""

_LABEL_KEYS = ("label", "cls", "class")
_RESERVED = ("image", "label", "path")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Member:
    name: str
    size_bytes: int
    content: bytes | None
    """None for what nobody needs now, and for images above the limit."""


_Parts: TypeAlias = dict[str, _Member]
"""The members of one sample by extension (lower case, with the dot)."""


@dataclass(slots=True)
class _Text:
    """What a sample says besides its image."""

    label: int | str | None = None
    carried: dict[str, Any] = field(default_factory=dict)


class TarSource:
    """Samples are runs of members with the same name up to the first dot, as WebDataset groups them.

    The label is `label`, `cls` or `class` of `.json`, else `.cls`, else `.txt`; labels that are all integers stay, others
    are class names. The other values of `.json` become columns. Raises DatasetError: a tar is truncated, or its
    metadata are not what they should be.
    """

    def __init__(self, root: Path, names: list[str], *, label: str | None, largest_bytes: int) -> None:
        self._root, self._names, self._largest_bytes = root, names, largest_bytes
        self._label_keys = (label,) if label else _LABEL_KEYS
        self.images = 0
        types: dict[str, set[type]] = defaultdict(set)
        labels: set[int | str] = set()
        for name in names:
            for _, parts in self._groups(name, images=False):
                text = self._text(parts, name)
                labels |= {text.label} if text.label is not None else set()
                for key, value in text.carried.items():
                    types[key].add(type(value))
                self.images += 1
        self.labelled = bool(labels)
        self._as_names = any(isinstance(label, str) for label in labels)
        self.classes = tuple(sorted({str(label) for label in labels})) if self._as_names else ()
        self.carried = pa.schema([(key, _arrow_type(types[key])) for key in sorted(types)])

    def samples(self) -> Iterator[Sample]:
        for name in self._names:
            for row, (key, parts) in enumerate(self._groups(name, images=True)):
                text = self._text(parts, name)
                member = next((parts[part] for part in parts if _is_image(part)), None)
                problem = ""
                if member is None:
                    problem = f"no image among {', '.join(sorted(parts))}"
                elif member.content is None:
                    problem = f"{member.size_bytes} bytes, more than the {self._largest_bytes} of a block"
                yield Sample(
                    image=member.content if member else None,
                    label=str(text.label) if self._as_names and text.label is not None else text.label,
                    path=member.name if member else key,
                    source=name,
                    row=row,
                    problem=problem,
                    carried={column.name: _as(column.type, text.carried.get(column.name)) for column in self.carried},
                )

    def _groups(self, name: str, *, images: bool) -> Iterator[tuple[str, _Parts]]:
        """(key, members) of the samples of one tar, in order; members are read as they come: going back is slow in a .tar.gz."""
        at = self._root / name
        try:
            with tarfile.open(at) as tar:
                key, parts = "", _Parts()
                for member in tar:
                    tar.members = []  # type: ignore[attr-defined]  # or tarfile remembers every header of a tar of millions
                    folder, _, file = member.name.rpartition("/")
                    stem, dot, extension = file.partition(".")
                    if not member.isfile() or not dot or not stem or stem.startswith("_"):
                        continue
                    of = f"{folder}/{stem}" if folder else stem
                    if of != key:
                        if parts:
                            yield key, parts
                        key, parts = of, _Parts()
                    parts["." + extension.lower()] = self._read(tar, member, "." + extension.lower(), images, at)
                if parts:
                    yield key, parts
                _check_end(tar)
        except (tarfile.TarError, EOFError, OSError) as error:
            raise DatasetError(
                f"{at} cannot be read as a tar: {error}", "restore the file, or take it out of the source"
            ) from None

    def _read(self, tar: tarfile.TarFile, member: tarfile.TarInfo, extension: str, images: bool, at: Path) -> _Member:
        content = None
        if extension in _TEXTS and member.size > _TEXT_BYTES:
            raise DatasetError(f"{at}: {member.name} has {member.size} bytes, too many for a label or metadata")
        if extension in _TEXTS or (images and _is_image(extension) and member.size <= self._largest_bytes):
            file = tar.extractfile(member)
            content = file.read() if file is not None else b""
            if len(content) != member.size:
                raise tarfile.ReadError(f"{member.name} ends after {len(content)} of {member.size} bytes")
        return _Member(name=member.name, size_bytes=member.size, content=content)

    def _text(self, parts: _Parts, name: str) -> _Text:
        text = self._from_json(parts[".json"], name) if ".json" in parts else _Text()
        for extension in (".cls", ".txt"):
            if extension in parts and text.label is None:
                raw = self._decoded(parts[extension], name).strip()
                text.label = int(raw) if re.fullmatch(r"-?[0-9]{1,18}", raw) else raw or None
        return text

    def _from_json(self, member: _Member, name: str) -> _Text:
        try:
            content = json.loads(self._decoded(member, name))
        except ValueError as error:
            raise DatasetError(f"{self._root / name}: {member.name} is not JSON: {error}") from None
        if not isinstance(content, dict):
            return _Text(label=content if type(content) in (int, str) else None)
        key = next((key for key in self._label_keys if type(content.get(key)) in (int, str)), None)
        carried = {k: v for k, v in content.items() if k != key and k not in _RESERVED and v is not None}
        return _Text(label=content[key] if key else None, carried=carried)

    def _decoded(self, member: _Member, name: str) -> str:
        try:
            return (member.content or b"").decode()
        except UnicodeDecodeError as error:
            raise DatasetError(f"{self._root / name}: {member.name} is not UTF-8: {error.reason}") from None


def _is_image(extension: str) -> bool:
    return PurePosixPath("x" + extension).suffix in IMAGE_SUFFIXES


def _check_end(tar: tarfile.TarFile) -> None:
    """tarfile takes a file that is cut short at or within a header for a whole one; a whole one ends with a block of zeros."""
    assert tar.fileobj is not None, "the tar was opened by name"
    tar.fileobj.seek(tar.offset)
    block = tar.fileobj.read(tarfile.BLOCKSIZE)
    if block != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError("the tar's end mark is missing: the file is cut short")


def _arrow_type(types: set[type]) -> pa.DataType:
    if types == {bool}:
        return pa.bool_()
    if types == {int}:
        return pa.int64()
    if types <= {int, float}:
        return pa.float64()
    return pa.string()


def _as(type_: pa.DataType, value: Any) -> Any:
    """`value` for a column of this type: what fits no plain type travels as JSON text."""
    if value is None or not pa.types.is_string(type_) or isinstance(value, str):
        return value
    return json.dumps(value, sort_keys=True)
