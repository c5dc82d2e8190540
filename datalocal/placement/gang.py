"""Training gangs: which rows each rank uses, decided from the footers before the epoch. Pure values; `division` makes them."""

from __future__ import annotations

from dataclasses import dataclass, replace


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
    left_out: int = 0
    """Samples of segments that are not told here, because only another node needs them."""

    @property
    def samples(self) -> int:
        return self.left_out + sum(segment.samples for segment in self.segments)


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochPlan:
    """One epoch (or what is left of it) for a whole gang. Every rank makes exactly `steps` steps."""

    steps: int
    shares: tuple[RankShare, ...]
    """By rank."""

    @property
    def samples(self) -> int:
        return sum(share.samples for share in self.shares)

    @property
    def away(self) -> int:
        """Samples that a rank reads from another node than its own."""
        return sum(
            segment.samples
            for share in self.shares
            for segment in share.segments
            if share.slot.node not in segment.sources
        )

    def step_samples(self, step: int) -> tuple[int, ...]:
        """Samples of each rank in this step; differs by at most one between a rank's steps."""
        return tuple(
            (step + 1) * share.samples // self.steps - step * share.samples // self.steps for share in self.shares
        )

    def by_node(self) -> dict[str, EpochPlan]:
        """The plan as each node needs it: its own ranks' segments, and how many samples the others have.

        A node with a rank without samples is told one segment of another's, to know what the images look like.
        """
        hollow = [RankShare(slot=share.slot, segments=(), left_out=share.samples) for share in self.shares]
        example = next((i for i, share in enumerate(self.shares) if share.segments), None)
        own: dict[str, list[int]] = {}
        for place, share in enumerate(self.shares):
            own.setdefault(share.slot.node, []).append(place)
        parts: dict[str, EpochPlan] = {}
        for node, places in own.items():
            shares = list(hollow)
            if example is not None and not all(self.shares[place].segments for place in places):
                whole = self.shares[example]
                first = whole.segments[0]
                shares[example] = replace(whole, segments=(first,), left_out=whole.samples - first.samples)
            for place in places:
                shares[place] = self.shares[place]
            parts[node] = EpochPlan(steps=self.steps, shares=tuple(shares))
        return parts
