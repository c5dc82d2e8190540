"""The order in which a rank uses its samples: fixed by the seed, shuffled, every sample once."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from datalocal.placement.gang import EpochPlan, RankShare, RankSlot, Segment
from datalocal.tasks.train.order import global_step_samples, step_bounds, windows


def segments(sizes: list[int]) -> list[Segment]:
    return [Segment(shard=f"s{i}", group=i, start=0, stop=size, sources=()) for i, size in enumerate(sizes)]


def flat(sizes: list[int], *, seed: int = 1, epoch: int = 0, rank: int = 0, groups: int = 3) -> list[tuple[str, int]]:
    return [
        (window.segments[s].shard, int(i))
        for window in windows(segments(sizes), seed=seed, epoch=epoch, rank=rank, groups=groups)
        for s, i in zip(window.segment_of, window.sample_of, strict=True)
    ]


@given(st.lists(st.integers(0, 9), max_size=12), st.integers(0, 2**32 - 1), st.integers(0, 5), st.integers(1, 5))
def test_every_sample_of_every_segment_comes_exactly_once(sizes: list[int], seed: int, rank: int, groups: int) -> None:
    got = flat(sizes, seed=seed, rank=rank, groups=groups)
    assert sorted(got) == sorted((f"s{i}", k) for i, size in enumerate(sizes) for k in range(size))


def test_the_same_seed_gives_the_same_order_and_another_seed_epoch_or_rank_another_one() -> None:
    sizes = [40, 30, 50, 20, 60]
    assert flat(sizes) == flat(sizes)
    others = [flat(sizes, seed=2), flat(sizes, epoch=1), flat(sizes, rank=1)]
    assert all(other != flat(sizes) for other in others)


def test_samples_are_mixed_across_the_row_groups_of_a_window_and_row_groups_are_permuted() -> None:
    sizes = [50] * 12
    got = flat(sizes, groups=4)
    assert len({shard for shard, _ in got[:50]}) == 4
    assert [shard for shard, _ in got[:200]] != sorted(shard for shard, _ in got[:200])
    firsts = [{shard for shard, _ in got[i : i + 200]} for i in range(0, 600, 200)]
    assert firsts != [{f"s{i}" for i in range(k, k + 4)} for k in range(0, 12, 4)]


def test_without_shuffling_samples_come_in_the_order_of_the_plan() -> None:
    got = [
        (window.segments[s].shard, int(i))
        for window in windows(segments([2, 3]), seed=1, epoch=0, rank=0, shuffle=False)
        for s, i in zip(window.segment_of, window.sample_of, strict=True)
    ]
    assert got == [("s0", 0), ("s0", 1), ("s1", 0), ("s1", 1), ("s1", 2)]


@given(st.integers(0, 500), st.integers(1, 40))
def test_steps_cover_a_ranks_samples_and_differ_by_at_most_one(samples: int, steps: int) -> None:
    sizes = np.diff(step_bounds(samples, steps))
    assert sizes.sum() == samples
    assert sizes.max() - sizes.min() <= 1


@given(st.lists(st.integers(0, 60), min_size=1, max_size=5), st.integers(1, 12))
def test_step_sizes_are_those_of_the_plan(samples: list[int], steps: int) -> None:
    shares = tuple(
        RankShare(slot=RankSlot(rank=r, node="n", local_rank=r), segments=tuple(segments([n])))
        for r, n in enumerate(samples)
    )
    plan = EpochPlan(steps=steps, shares=shares)
    assert [sum(plan.step_samples(step)) for step in range(steps)] == global_step_samples(plan).tolist()
    own = [tuple(int(np.diff(step_bounds(n, steps))[step]) for n in samples) for step in range(steps)]
    assert own == [plan.step_samples(step) for step in range(steps)]
