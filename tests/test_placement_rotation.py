"""Rotation: every epoch another replica, nothing over the network, every row once, and the same draw from the same seed."""

from __future__ import annotations

from pathlib import Path
from typing import TypeAlias

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from datalocal.catalog.model import Catalog, ShardEntry, build_catalog
from datalocal.placement.epochs import Mask, Progress, Schedule, plan_epochs
from datalocal.placement.gang import EpochPlan, RankSlot
from datalocal.placement.model import Assignment
from datalocal.placement.rotation import rotation
from datalocal.placement.shuffles import LOCAL, Shuffle, shuffle_named
from tests import worlds
from tests.test_runner_inline import arm, moved, run

Case: TypeAlias = tuple[Catalog, list[Assignment], dict[str, Mask]]


def spread(nodes: int, shards: int, replicas: int, seed: int = 0) -> list[tuple[int, ...]]:
    """Holders of each shard: distinct nodes drawn at random."""
    draw = np.random.default_rng(seed)
    return [tuple(draw.choice(nodes, size=replicas, replace=False).tolist()) for _ in range(shards)]


def world(held: list[tuple[int, ...]], nodes: int, rows: int) -> Case:
    names = [f"node{number:04d}" for number in range(nodes)]
    entries = [
        ShardEntry(
            key=f"s{i:05d}", bytes=rows, replicas=tuple(names[n] for n in on), group_rows=(rows,), group_bytes=(rows,)
        )
        for i, on in enumerate(held)
    ]
    assignments = [
        Assignment(shard=f"s{i:05d}", node=names[on[0]], sources=tuple(names[n] for n in on))
        for i, on in enumerate(held)
    ]
    masks = {entry.key: np.ones(rows, dtype=bool) for entry in entries}
    return build_catalog(dataset="d", nodes=names, entries=entries), assignments, masks


def gang_of(assignments: list[Assignment]) -> list[RankSlot]:
    nodes = sorted({assignment.node for assignment in assignments})
    return [RankSlot(rank=rank, node=node, local_rank=0) for rank, node in enumerate(nodes)]


def rotate(seed: int) -> Shuffle:
    return shuffle_named("rotate", seed)


def schedule(
    case: Case,
    shuffle: Shuffle,
    *,
    epochs: int = 3,
    batch: int = 64,
    progress: Progress | None = None,
) -> Schedule:
    catalog, assignments, masks = case
    slots = gang_of(assignments)
    return plan_epochs(
        catalog, assignments, masks, slots, batch=batch, epochs=epochs, progress=progress, shuffle=shuffle
    )


def away(plan: EpochPlan, catalog: Catalog) -> int:
    """Samples that a rank reads from another node than its own."""
    return sum(
        segment.samples
        for share in plan.shares
        for segment in share.segments
        if share.slot.node not in catalog.replicas(catalog.index(segment.shard))
    )


def changed_share(before: EpochPlan, after: EpochPlan) -> float:
    """Share of the samples that another rank uses in `after` than in `before`; 0 when nothing changed, 1 when everything did.

    A row group divided among ranks counts by the rows that each has.
    """
    owned = [
        {
            (share.slot.rank, segment.shard, segment.group): segment.samples
            for share in plan.shares
            for segment in share.segments
        }
        for plan in (before, after)
    ]
    kept = sum(min(rows, owned[1].get(key, 0)) for key, rows in owned[0].items())
    return 1 - kept / max(before.samples, 1)


def test_two_thirds_of_the_shards_change_their_rank_and_none_is_read_over_the_network() -> None:
    """1,000 equal nodes, 3 replicas: the bound is 1 - 1/3; what does not divide evenly keeps a little of it."""
    case = world(spread(1000, 10_000, 3), 1000, 10)
    plans = [work.plan for work in schedule(case, rotate(7), batch=10_000, epochs=2).epochs]
    assert [away(plan, case[0]) for plan in plans] == [0, 0]
    for plan in plans:
        samples = [share.samples for share in plan.shares]
        assert sum(samples) == 100_000
        assert max(samples) - min(samples) <= 10, "a step's batch divides evenly over 1,000 ranks"
    changed = changed_share(*plans)
    assert 0.6 <= changed <= 0.7, changed
    assert changed_share(plans[0], plans[0]) == 0


@st.composite
def cases(draw: st.DrawFn) -> Case:
    nodes = draw(st.integers(1, 6))
    on = st.lists(st.integers(0, nodes - 1), min_size=1, max_size=3, unique=True).map(tuple)
    held: list[tuple[int, ...]] = draw(st.lists(on, min_size=1, max_size=10))
    return world(held, nodes, draw(st.integers(1, 12)))


@settings(max_examples=150)
@given(cases(), st.integers(0, 2**32 - 1))
def test_every_row_is_used_once_in_every_epoch_whatever_the_order_of_the_assignments(case: Case, seed: int) -> None:
    catalog, assignments, masks = case
    made = schedule(case, rotate(seed), batch=4)
    mixed = list(reversed(assignments))
    assert schedule((catalog, mixed, masks), rotate(seed), batch=4) == made
    for work in made.epochs:
        used: dict[str, int] = {}
        for share in work.plan.shares:
            for segment in share.segments:
                used[segment.shard] = used.get(segment.shard, 0) + segment.samples
        assert used == {key: int(mask.sum()) for key, mask in masks.items()}
    trainers = {slot.node for slot in gang_of(assignments)}
    assert all(share.slot.node in trainers for work in made.epochs for share in work.plan.shares)


def test_a_shard_that_is_not_local_stays_with_its_node() -> None:
    far = Assignment(shard="far", node="node1", sources=("store",), reason="no replica")
    near = Assignment(shard="near", node="node0", sources=("node0", "node1"))
    for epoch in range(6):
        drawn = {each.shard: each for each in rotation(1)([far, near], {"far": 5, "near": 5}, epoch)}
        assert drawn["far"] == far
        assert drawn["near"].sources[0] == drawn["near"].node


def test_the_same_gang_goes_on_within_its_rotated_epoch_and_another_draw_is_another_gang() -> None:
    case = world(spread(6, 40, 3), 6, 10)
    whole = schedule(case, rotate(3))
    progress = Progress(epoch=1, step=2, epoch_done=False, used={}, gang=whole.gang)
    resumed = schedule(case, rotate(3), progress=progress)
    assert [(work.epoch, work.start_step, work.plan) for work in resumed.epochs] == [
        (1, 2, whole.epochs[1].plan),
        (2, 0, whole.epochs[2].plan),
    ]
    assert len({whole.gang, schedule(case, rotate(4)).gang, schedule(case, LOCAL).gang}) == 3


def test_a_run_that_rotates_reads_nothing_over_the_network_and_uses_every_sample_once_an_epoch(tmp_path: Path) -> None:
    cluster = worlds.cluster_file(tmp_path, storage=4)
    worlds.fill(tmp_path / "home", cluster, worlds.image_folder(tmp_path / "images", 120))
    job = worlds.job_file(tmp_path / "job", preprocess=False, train={"shuffle": "rotate", "epochs": 3})
    code, report = run(tmp_path / "home", job, cluster, "data-local", run_id="rotating")
    assert code == 0
    (stage,) = arm(report, "data-local")["stages"]
    samples = stage["samples"]
    assert (samples["seen"], samples["repeated"], samples["dropped"]) == (samples["expected"], 0, 0)
    assert moved(arm(report, "data-local"), "input") == 0
