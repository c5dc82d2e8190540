"""What ingest takes in and what it tells: samples, layouts, the report."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias

import pyarrow as pa

from datalocal.ledger.records import Damaged

Layout: TypeAlias = Literal["folder", "webdataset", "parquet"]
"""A folder of images (class per folder), WebDataset tars, or Parquet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One image as its source gives it."""

    image: bytes | None
    label: int | str | None
    path: str
    """Where the image was, as the source names it."""
    source: str
    """The file that held it, below the source folder."""
    row: int
    """Its number in that file, from 0."""
    problem: str = ""
    """Why the source could not give the image's bytes."""
    carried: Mapping[str, Any] = field(default_factory=dict)


class Source(Protocol):
    """A user's images, ready to be read in order, as often as one likes."""

    images: int
    """How many there are."""
    labelled: bool
    classes: tuple[str, ...]
    """Names of the classes: a text label is the number of its name here; integer labels stay what they are."""
    carried: pa.Schema
    """Columns besides image, label and path."""

    def samples(self) -> Iterator[Sample]:
        """The images, one at a time; only one is in memory (of Parquet: one batch)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IngestReport:
    """What an ingest did."""

    images: int
    bytes: int
    """Bytes of the shards, one copy of each."""
    shards: int
    damaged: tuple[Damaged, ...]
    """The images that were left out: source file, row in it, path, problem."""
