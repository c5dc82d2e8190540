"""The training shuffles: what changes from epoch to epoch in who uses which rows, and what that costs. Pure.

| name | what changes | what crosses the network |
|---|---|---|
| `local` | nothing: a rank keeps its shards | nothing |
| `rotate` | another replica of a shard is the one that is read (`rotation`) | nothing |
| `partial` | a share of every rank's rows goes to other ranks | about that share of the data |
| `global` | all rows are dealt anew, one by one | up to ranks x the data, see `deal_all` |

`partial` is that of Nguyen et al. (IPDPS 2022, hal-03599740), without keeping what was exchanged.

Every division is a pure function of the seed, the epoch and the division it begins with, so a resumed run draws it again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import numpy as np

from datalocal.errors import PlacementError
from datalocal.placement.gang import EpochPlan, RankShare, Segment
from datalocal.placement.model import Assignment
from datalocal.placement.rotation import Draw, keep, rotation

Name = Literal["local", "rotate", "partial", "global"]

Selected: TypeAlias = "Mapping[str, Sequence[int]]"
"""By shard key: selected rows of each of its row groups."""

Deal: TypeAlias = "Callable[[EpochPlan, Mapping[str, Assignment], Selected, int], EpochPlan]"
"""(the epoch's division, assignment of each shard, selected rows, epoch) -> the division with rows moved between ranks."""

MOST_ROWS = 10**9
"""`multivariate_hypergeometric` draws from fewer than this."""
MOST_SEGMENTS = 4_000_000
"""Of one epoch: beyond it the plan alone would need gigabytes, and every rank would read nearly every row group."""

_EXCHANGE, _GLOBAL = 0x5058, 0x474C  # keep the draws of one seed apart


def as_divided(
    plan: EpochPlan, homes: Mapping[str, Assignment], selected: Mapping[str, Sequence[int]], epoch: int
) -> EpochPlan:
    """The division as it is (`local`, `rotate`)."""
    return plan


@dataclass(frozen=True, slots=True, kw_only=True)
class Shuffle:
    """One way of shuffling: first `draw` places whole shards, then their rows are divided evenly, then `deal` moves rows."""

    name: Name
    draw: Draw = keep
    deal: Deal = as_divided

    @property
    def every_epoch_alike(self) -> bool:
        """Whether one plan serves all epochs."""
        return self.draw is keep and self.deal is as_divided

    @property
    def row_by_row(self) -> bool:
        """Whether segments count the rows of a row group in an order drawn for the epoch, not in file order."""
        return self.name == "global"


LOCAL = Shuffle(name="local")


def shuffle_named(name: Name, seed: int, exchange: float | None = None) -> Shuffle:
    """The shuffle that a job asks for; `exchange` is the share of `partial`."""
    match name:
        case "local":
            return LOCAL
        case "rotate":
            return Shuffle(name=name, draw=rotation(seed))
        case "partial":
            assert exchange is not None, "the job's spec sees to it"
            return Shuffle(name=name, deal=exchange_some(seed, exchange))
        case "global":
            return Shuffle(name=name, deal=deal_all(seed))


def exchange_some(seed: int, share: float) -> Deal:
    """`partial`: in every epoch each rank gives `share` of its rows to other ranks for that epoch, and gets as many.

    What is given are whole row groups, drawn anew, and one run of rows out of another for the remainder. Single rows would
    mix better, but Parquet is read by row group: a rank that takes 25 rows out of each of many row groups of 250 reads ten
    times what it uses. Nothing is kept: the next epoch begins with the division at home again, so the bytes are those of one
    exchange per epoch, however long the training. Ranks stand in a circle drawn anew, and what all of them give is passed on
    around it, so far that nobody gets his own back.
    """

    def deal(
        plan: EpochPlan, homes: Mapping[str, Assignment], selected: Mapping[str, Sequence[int]], epoch: int
    ) -> EpochPlan:
        draw = np.random.default_rng([seed, _EXCHANGE, epoch])
        amounts = _amounts([rank.samples for rank in plan.shares], share)
        total = sum(amounts)
        if not total:
            return plan
        kept: list[list[Segment]] = []
        given: list[list[Segment]] = []
        for rank, amount in zip(plan.shares, amounts, strict=True):
            stays, goes = _taken_out(rank.segments, amount, draw)
            kept.append(stays)
            given.append(goes)
        most = max(amounts)
        shift = int(draw.integers(most, total - most + 1))
        circle = draw.permutation(len(amounts)).tolist()
        ring = [segment for rank in circle for segment in given[rank]]
        pieces = _cut(_turned(ring, total - shift), [amounts[rank] for rank in circle])
        for rank, piece in zip(circle, pieces, strict=True):
            node = plan.shares[rank].slot.node
            kept[rank] += [_on(node, segment, homes) for segment in piece]
        return _with(plan, kept)

    return deal


def deal_all(seed: int) -> Deal:
    """`global`: in every epoch all rows are dealt anew over the ranks, every division with these sizes as likely as any other.

    A rank reads a row group whole, whatever it uses of it. Of a row group of k rows each of m ranks gets about k / m, so for
    k well above m the row group is read m times in an epoch, and all but the nodes that hold it read it over the network:
    (m - r) x the data instead of the (1 - r / m) x the data that are used. `mixing.rows_read` counts it.

    Raises PlacementError where rows or ranks are too many for dealing row by row.
    """

    def deal(
        plan: EpochPlan, homes: Mapping[str, Assignment], selected: Mapping[str, Sequence[int]], epoch: int
    ) -> EpochPlan:
        groups = [(key, number) for key in sorted(selected) for number, rows in enumerate(selected[key]) if rows]
        left = np.array([selected[key][number] for key, number in groups], dtype=np.int64)
        if left.sum() >= MOST_ROWS or min(len(groups) * len(plan.shares), int(left.sum())) > MOST_SEGMENTS:
            raise PlacementError(
                f"`shuffle: global` would deal {int(left.sum()):,} rows of {len(groups):,} row groups over "
                f"{len(plan.shares):,} ranks, one by one",
                "each rank would read nearly every row group; `rotate` or `partial` mix what whole row groups allow",
            )
        draw = np.random.default_rng([seed, _GLOBAL, epoch])
        done = np.zeros_like(left)
        dealt: list[list[Segment]] = []
        for share in plan.shares:
            node = share.slot.node
            hand = draw.multivariate_hypergeometric(left, share.samples, method="marginals")
            mine = np.flatnonzero(hand)
            starts, stops = done[mine].tolist(), (done + hand)[mine].tolist()
            dealt.append(
                [
                    _on(node, Segment(shard=key, group=number, start=start, stop=stop, sources=()), homes)
                    for (key, number), start, stop in zip(
                        (groups[i] for i in mine.tolist()), starts, stops, strict=True
                    )
                ]
            )
            left, done = left - hand, done + hand
        return _with(plan, dealt)

    return deal


def _amounts(samples: Sequence[int], share: float) -> list[int]:
    """Rows that each rank gives: its share, and no more than all others together can give in return."""
    amounts = [int(share * count + 0.5) for count in samples]
    if not amounts:
        return []
    fullest = max(range(len(amounts)), key=amounts.__getitem__)
    amounts[fullest] = min(amounts[fullest], sum(amounts) - amounts[fullest])
    return amounts


def _taken_out(
    segments: Sequence[Segment], amount: int, draw: np.random.Generator
) -> tuple[list[Segment], list[Segment]]:
    """(what stays, what goes): whole segments in drawn order, and a run of rows from the one that would be too much."""
    stays: list[Segment] = []
    goes: list[Segment] = []
    for place in draw.permutation(len(segments)).tolist():
        segment = segments[place]
        taken = min(amount, segment.samples)
        amount -= taken
        if not taken:
            stays.append(segment)
            continue
        start = segment.start + int(draw.integers(segment.samples - taken + 1))
        goes.append(replace(segment, start=start, stop=start + taken))
        rest = ((segment.start, start), (start + taken, segment.stop))
        stays += [replace(segment, start=first, stop=last) for first, last in rest if first < last]
    return stays, goes


def _turned(ring: Sequence[Segment], first: int) -> Iterator[Segment]:
    """The ring's rows from number `first` on, once around."""
    total = sum(segment.samples for segment in ring)
    before, after = _cut(iter(ring), [first, total - first])
    yield from after
    yield from before


def _cut(segments: Iterator[Segment], sizes: Sequence[int]) -> list[list[Segment]]:
    """The rows in order, in pieces of these sizes."""
    pieces: list[list[Segment]] = []
    rest: Segment | None = None
    for size in sizes:
        piece: list[Segment] = []
        while size:
            segment = rest if rest is not None else next(segments)
            taken = min(size, segment.samples)
            piece.append(replace(segment, stop=segment.start + taken))
            rest = replace(segment, start=segment.start + taken) if taken < segment.samples else None
            size -= taken
        pieces.append(piece)
    return pieces


def _on(node: str, segment: Segment, homes: Mapping[str, Assignment]) -> Segment:
    """The segment as a rank on `node` reads it. It is exchanged where it lies elsewhere and would have been read at home."""
    home = homes[segment.shard]
    if node in home.sources:
        return replace(segment, sources=(node, *(name for name in home.sources if name != node)), exchanged=False)
    return replace(segment, sources=home.sources, exchanged=home.local)


def _with(plan: EpochPlan, segments: Sequence[Sequence[Segment]]) -> EpochPlan:
    """The plan with these segments by rank, in order of shard, row group and row."""
    shares = tuple(
        RankShare(slot=share.slot, segments=tuple(sorted(own, key=lambda s: (s.shard, s.group, s.start))))
        for share, own in zip(plan.shares, segments, strict=True)
    )
    return EpochPlan(steps=plan.steps, shares=shares)
