"""In which order a rank uses its samples. A pure function of seed, epoch, rank and plan; no clock, no threads.

Row groups are permuted, then samples are shuffled within *windows* of several row groups: a row group is read once, and at
most two windows (the one in use and the one being fetched) are in memory.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from datalocal.placement.gang import EpochPlan, Segment

WINDOW_GROUPS = 4
"""Row groups per window: 400 to 2,000 images at the usual 100 to 500 a group."""

WINDOW_IMAGES = 2000
"""Where row groups are smaller, a window has more of them, up to so many images: else neighbours come from few places."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Some segments and the order in which their samples come."""

    segments: tuple[Segment, ...]
    first: int
    """Number of the window's first sample within the rank's epoch."""
    segment_of: npt.NDArray[np.intp]
    """[n] for each sample, in order of use: position in `segments`."""
    sample_of: npt.NDArray[np.int64]
    """[n] for each sample, in order of use: its number within the segment, from 0."""

    @property
    def samples(self) -> int:
        return len(self.sample_of)


def windows(
    segments: Sequence[Segment], *, seed: int, epoch: int, rank: int, groups: int = WINDOW_GROUPS, shuffle: bool = True
) -> Iterator[Window]:
    """The windows of one rank's epoch, in order. Every sample of every segment comes exactly once.

    Without `shuffle` (validation) the samples come in the order of the plan.
    """
    draw = np.random.default_rng([seed, epoch, rank])
    filled = [segment for segment in segments if segment.samples]
    order = draw.permutation(len(filled)).tolist() if shuffle else range(len(filled))
    first = 0
    for start in range(0, len(filled), groups):
        chosen = tuple(filled[i] for i in order[start : start + groups])
        ends = np.cumsum([segment.samples for segment in chosen])
        total = int(ends[-1])
        flat = draw.permutation(total) if shuffle else np.arange(total)
        segment_of = np.searchsorted(ends, flat, side="right")
        begins = ends - np.array([segment.samples for segment in chosen])
        yield Window(segments=chosen, first=first, segment_of=segment_of, sample_of=flat - begins[segment_of])
        first += total


def dealt(seed: int, epoch: int, shard: str, group: int, rows: int) -> npt.NDArray[np.int64]:
    """[rows] the order in which the selected rows of a row group are dealt to ranks in this epoch (`shuffle: global`)."""
    key = hashlib.blake2b(f"{seed}\0{epoch}\0{group}\0{shard}".encode(), digest_size=16).digest()
    draw = np.random.Generator(np.random.Philox(key=int.from_bytes(key, "little")))
    return draw.permutation(rows).astype(np.int64)


def step_bounds(samples: int, steps: int) -> npt.NDArray[np.int64]:
    """[steps + 1] where each step of a rank begins among its samples; the last entry is `samples`.

    The same rule as `EpochPlan.step_samples`: sizes differ by at most one.
    """
    return np.arange(steps + 1, dtype=np.int64) * samples // max(steps, 1)


def global_step_samples(plan: EpochPlan) -> npt.NDArray[np.int64]:
    """[steps] samples of every step over all ranks together."""
    total = np.zeros(plan.steps, dtype=np.int64)
    for share in plan.shares:
        total += np.diff(step_bounds(share.samples, plan.steps))
    return total
