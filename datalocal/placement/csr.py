"""Reading many rows of a CSR table (compressed sparse rows) at once. Pure."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

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


def any_of(offsets: Offsets, flags: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """For each row whether any of its entries is flagged; not so for a row without entries."""
    filled = np.flatnonzero(offsets[1:] > offsets[:-1])
    found = np.zeros(len(offsets) - 1, dtype=np.bool_)
    if filled.size:
        found[filled] = np.bitwise_or.reduceat(flags, offsets[filled])  # the same as logical_or on flags, and faster
    return found
