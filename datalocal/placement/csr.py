"""Reading many rows of a CSR table (compressed sparse rows) at once. Pure."""

from __future__ import annotations

from itertools import pairwise
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.sparse import csr_array

Offsets: TypeAlias = npt.NDArray[np.int64]
Positions: TypeAlias = npt.NDArray[np.int64]


def entries(offsets: Offsets, rows: npt.NDArray[np.integer]) -> tuple[Positions, Positions]:
    """Positions of the entries of CSR `rows`, one row after the other, and how many there are up to the end of each row."""
    starts = offsets[rows]
    lengths = offsets[rows + 1] - starts
    ends = np.cumsum(lengths)
    where = np.repeat(starts - ends + lengths, lengths)
    where += np.arange(len(where))
    return where, ends


def spans(offsets: Offsets, rows: npt.NDArray[np.integer]) -> tuple[Positions, Positions]:
    """Positions of the entries of CSR `rows`, one row after the other, and for each entry its place in `rows`."""
    where, ends = entries(offsets, rows)
    return where, np.repeat(np.arange(len(rows)), np.diff(ends, prepend=0))


def rows_of(offsets: Offsets, values: npt.NDArray[np.integer]) -> list[list[int]]:
    """The rows as lists."""
    counts = np.diff(offsets)
    if len(counts) and (counts == counts[0]).all():  # a table is several times faster than slices
        table: list[list[int]] = values.reshape(len(counts), int(counts[0])).tolist()
        return table
    flat = values.tolist()
    return [flat[start:end] for start, end in pairwise(offsets.tolist())]


def any_of(offsets: Offsets, flags: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """For each row whether any of its entries is flagged; not so for a row without entries."""
    filled = np.flatnonzero(offsets[1:] > offsets[:-1])
    found = np.zeros(len(offsets) - 1, dtype=np.bool_)
    if filled.size:
        found[filled] = np.bitwise_or.reduceat(flags, offsets[filled])  # the same as logical_or on flags, and faster
    return found


def columns(offsets: Offsets, entries_: npt.NDArray[np.integer], count: int) -> tuple[Offsets, npt.NDArray[np.int32]]:
    """The table turned over: CSR offsets of `count` columns, and the rows in which each stands, ascending."""
    shape = (len(offsets) - 1, count)
    table = csr_array((np.ones(len(entries_), np.int8), entries_, offsets.astype(np.int32)), shape=shape).tocsc()
    return table.indptr.astype(np.int64), table.indices
