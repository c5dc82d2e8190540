"""Training gangs: which rows each rank uses, decided from the footers before the epoch. Pure values; `division` makes them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class RankSlot:
    """A place for one rank: its number in the gang, its node, its number on that node."""

    rank: int
    node: str
    local_rank: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """Selected rows `start:stop` of one row group (counted among the group's *selected* rows, in file order)."""

    shard: str
    group: int
    start: int
    stop: int
    sources: tuple[str, ...]
    """Nodes to read the shard from, best first."""
    exchanged: bool = False
    """Whether the rank reads it from another node only for the sake of the shuffle; those bytes are `exchange`, not `input`."""

    @property
    def samples(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True, kw_only=True)
class RankShare:
    """What one rank uses in one epoch."""

    slot: RankSlot
    segments: tuple[Segment, ...]

    @property
    def samples(self) -> int:
        return sum(segment.samples for segment in self.segments)


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochPlan:
    """One epoch (or what is left of it) for a whole gang. Every rank makes exactly `steps` steps."""

    steps: int
    shares: tuple[RankShare, ...]
    """By rank."""

    @property
    def samples(self) -> int:
        return sum(share.samples for share in self.shares)

    def step_samples(self, step: int) -> tuple[int, ...]:
        """Samples of each rank in this step; differs by at most one between a rank's steps."""
        return tuple(
            (step + 1) * share.samples // self.steps - step * share.samples // self.steps for share in self.shares
        )
