"""How well a shuffle mixes, as figures between 0 and 1: from plans before anything runs, and from labels that ranks saw. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from datalocal.placement.gang import EpochPlan

Counts = npt.NDArray[np.int64]
Table = npt.NDArray[np.float64]


def label_distance(counts: Sequence[int] | Counts, whole: Sequence[int] | Counts) -> float:
    """Earth mover's distance between two label histograms, every label as far from every other: 1/2 sum |p - q|.

    0 for equal shares. The most it can be is 1 - min(q), for a rank that has only the rarest label. (Zhao et al. 2018,
    arXiv 1806.00582, give the sum without the half.) Raises ValueError when a histogram is empty.
    """
    p, q = np.asarray(counts, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    if not p.sum() or not q.sum():
        raise ValueError("a histogram without samples has no shares")
    return float(np.abs(p / p.sum() - q / q.sum()).sum() / 2)


def moved(before: EpochPlan, after: EpochPlan, *, row_by_row: bool = False) -> Table:
    """[ranks, ranks] samples that rank i used in `before` and rank j uses in `after` (both of the same rows).

    Where rows of a row group are dealt one by one, in another order each epoch, the expected number stands for the real one.
    """
    table = np.zeros((len(before.shares), len(after.shares)))
    if before is after:
        np.fill_diagonal(table, [share.samples for share in after.shares])
        return table
    was = _pieces(before)
    for rank, share in enumerate(after.shares):
        for segment in share.segments:
            old = was.get((segment.shard, segment.group), ())
            total = sum(stop - start for _, start, stop in old)
            for other, start, stop in old:
                if row_by_row:
                    table[other, rank] += (stop - start) * segment.samples / total
                else:
                    table[other, rank] += max(0, min(stop, segment.stop) - max(start, segment.start))
    return table


def _pieces(plan: EpochPlan) -> dict[tuple[str, int], list[tuple[int, int, int]]]:
    """(rank, first row, last row + 1) of each row group's segments."""
    found: dict[tuple[str, int], list[tuple[int, int, int]]] = {}
    for rank, share in enumerate(plan.shares):
        for segment in share.segments:
            found.setdefault((segment.shard, segment.group), []).append((rank, segment.start, segment.stop))
    return found


def changed_share(table: Table) -> float:
    """Share of the samples that another rank uses than before; 0 when nothing changed, 1 when everything did."""
    total = float(table.sum())
    return min(1.0, max(0.0, 1.0 - float(np.trace(table)) / total)) if total else 0.0


def mixture_entropy(table: Table) -> float:
    """How evenly a rank's samples come from the ranks of the epoch before: H(before | now) / log(ranks), in [0, 1].

    0 when every rank takes over the whole share of one rank, be it its own; 1 when all ranks draw evenly from all. Where
    `changed_share` cannot tell a mixture from an exchange of places, this can.
    """
    ranks = len(table)
    total = float(table.sum())
    if ranks < 2 or not total:
        return 0.0
    now = table.sum(axis=0)
    shares = np.divide(table, now, out=np.zeros_like(table), where=now > 0)
    logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    entropy = -(table * logs).sum() / total
    return min(1.0, max(0.0, float(entropy / np.log(ranks))))


def rows_read(plan: EpochPlan, group_rows: Mapping[str, Sequence[int]]) -> int:
    """Rows of all row groups that all ranks read: a row group is read whole by each rank that uses some of it.

    `group_rows`: by shard key, all rows of each row group, selected or not.
    """
    return sum(
        group_rows[shard][number]
        for share in plan.shares
        for shard, number in {(segment.shard, segment.group) for segment in share.segments}
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Mixing:
    """One whole epoch as it was planned."""

    epoch: int
    samples: int
    rows_read: int
    """`rows_read` / `samples` is the read amplification."""
    exchanged: int
    """Samples that are read from another node for the sake of the shuffle."""
    changed_share: float | None
    """Against the epoch before; None for the first one."""
    mixture_entropy: float | None


def mixing(
    epochs: Iterable[tuple[int, EpochPlan]], group_rows: Mapping[str, Sequence[int]], *, row_by_row: bool
) -> list[Mixing]:
    """Every epoch of (number, plan), each against the one before it."""
    found: list[Mixing] = []
    before: EpochPlan | None = None
    for number, plan in epochs:
        table = None if before is None else moved(before, plan, row_by_row=row_by_row)
        if plan is before:
            read, exchanged = found[-1].rows_read, found[-1].exchanged
        else:
            read = rows_read(plan, group_rows)
            exchanged = sum(s.samples for share in plan.shares for s in share.segments if s.exchanged)
        found.append(
            Mixing(
                epoch=number,
                samples=plan.samples,
                rows_read=read,
                exchanged=exchanged,
                changed_share=None if table is None else changed_share(table),
                mixture_entropy=None if table is None else mixture_entropy(table),
            )
        )
        before = plan
    return found
