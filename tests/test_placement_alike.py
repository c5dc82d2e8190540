"""Shards of one kind moved together: the same answers as moving them one by one."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datalocal.placement import alike, family, flow, synthetic, waves
from datalocal.placement.alike import Alike, runs
from datalocal.placement.certificate import gap
from datalocal.placement.vet import vet
from datalocal.placement.waves import NOWHERE, Index, settle
from tests.test_placement_flow import moved_by_lsa, tight


@st.composite
def crowded(draw: st.DrawFn) -> tuple[Index, np.ndarray, np.ndarray, np.ndarray | None]:
    """Up to 60 shards of up to 8 kinds on some of their holders or nowhere, capacities, and perhaps regions."""
    nodes = draw(st.integers(2, 7))
    kinds = draw(
        st.lists(st.lists(st.integers(0, nodes - 1), min_size=1, max_size=3, unique=True), min_size=1, max_size=8)
    )
    shards = draw(st.lists(st.integers(0, len(kinds) - 1), min_size=1, max_size=60))
    held = [sorted(kinds[kind]) for kind in shards]
    place = [draw(st.sampled_from([*holders, *holders, NOWHERE])) for holders in held]
    offsets = np.concatenate(([0], np.cumsum([len(holders) for holders in held]))).astype(np.int64)
    index = Index.of(offsets, np.array([node for holders in held for node in holders], dtype=np.int32), nodes)
    room = draw(st.lists(st.integers(0, 12), min_size=nodes, max_size=nodes))
    region = draw(st.none() | st.lists(st.integers(0, 2), min_size=nodes, max_size=nodes))
    return (
        index,
        np.array(place, dtype=np.int32),
        np.array(room, dtype=np.int64),
        None if region is None else np.array([*region, NOWHERE], dtype=np.int64),
    )


def every_kind(index: Index) -> Alike:
    """The kinds of so few shards, which `Alike.of` would not look at."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(alike, "SHARDS_PER_KIND", 1)
        found = Alike.of(index.offsets, index.holders, index.nodes)
    assert found is not None
    return found


@given(made=crowded())
@settings(deadline=None, max_examples=400)
def test_as_little_stays_above_capacity_as_when_shards_move_one_by_one(
    made: tuple[Index, np.ndarray, np.ndarray, np.ndarray | None],
) -> None:
    index, start, capacity, region = made
    place, load = start.copy(), np.bincount(start[start >= 0], minlength=index.nodes)
    every_kind(index).settle(place, load, capacity, region)
    assert load.tolist() == np.bincount(place[place >= 0], minlength=index.nodes).tolist()
    assert ((place == NOWHERE) == (start == NOWHERE)).all()
    for shard in np.flatnonzero(place >= 0).tolist():
        assert place[shard] in index.row(shard)
    other, other_load = start.copy(), np.bincount(start[start >= 0], minlength=index.nodes)
    settle(index, other, other_load, capacity, region)
    assert np.maximum(load - capacity, 0).sum() == np.maximum(other_load - capacity, 0).sum()
    if region is not None:  # none has left its region
        for shard, (before, after) in enumerate(zip(start.tolist(), place.tolist(), strict=True)):
            assert region[before] == region[after], shard
    settled = place.copy()
    settle(index, place, load, capacity, region)
    assert (place == settled).all(), "nothing is left to be moved"


@given(made=crowded())
@settings(deadline=None)
def test_nothing_moves_where_nobody_has_too_many(
    made: tuple[Index, np.ndarray, np.ndarray, np.ndarray | None],
) -> None:
    index, start, _, region = made
    place, load = start.copy(), np.bincount(start[start >= 0], minlength=index.nodes)
    every_kind(index).settle(place, load, load.copy(), region)
    assert (place == start).all()


@given(
    held=st.lists(st.lists(st.integers(0, 4), max_size=3, unique=True).map(sorted), max_size=40),
    data=st.data(),
)
@settings(deadline=None)
def test_runs_are_the_shards_with_equal_holders_and_weight(held: list[list[int]], data: st.DataObject) -> None:
    weight = data.draw(st.none() | st.lists(st.integers(1, 2), min_size=len(held), max_size=len(held)))
    offsets = np.concatenate(([0], np.cumsum([len(holders) for holders in held]))).astype(np.int64)
    flat = np.array([node for holders in held for node in holders], dtype=np.int32)
    members, starts = runs(offsets, flat, 5, None if weight is None else np.array(weight, dtype=np.int64))
    keys = [(tuple(holders), None if weight is None else weight[shard]) for shard, holders in enumerate(held)]
    found = [members[a:b].tolist() for a, b in pairwise(starts.tolist())]
    assert sorted(shard for run in found for shard in run) == list(range(len(held)))
    assert all(len({keys[shard] for shard in run}) == 1 for run in found)
    assert len(found) == len(set(keys))


@pytest.mark.parametrize("slack", [1.0, 1.02])
@pytest.mark.parametrize("seed", range(4))
def test_the_optimum_and_its_loads_are_the_same_with_kinds_and_without(
    seed: int, slack: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rings of 8,000 shards on 80 nodes, where excess has far to go; a part of the shards without one of its replicas."""
    problem = synthetic.ring(8000, 80, seed=seed)
    if seed % 2:
        kept = np.ones(len(problem.replica_nodes), dtype=np.bool_)
        kept[:3000:3] = False
        lengths = np.bincount(np.repeat(np.arange(problem.shards), 3)[kept])
        problem = replace(
            problem,
            replica_offsets=np.concatenate(([0], np.cumsum(lengths))),
            replica_nodes=problem.replica_nodes[kept],
        )
    capacity = problem.capacity(problem.least_makespan() * slack)
    used = Counter[str]()
    monkeypatch.setattr(waves, "MANY_MOVES", 0)

    def solved() -> tuple[int, list[int], list[bool]]:
        matching = flow.match(problem, capacity)
        used["kinds"] += matching.alike is not None
        answer = flow.finish(problem, matching, policy="optimal-bytes", makespan_s=None)
        return (
            matching.non_local,
            sorted(np.bincount(answer.node, minlength=problem.nodes).tolist()),
            matching.cuts[-1].nodes.tolist(),
        )

    with_kinds = solved()
    monkeypatch.setattr(Alike, "of", classmethod(lambda *_: None))
    assert solved() == with_kinds
    assert used["kinds"] == 1


def test_the_bytes_moved_are_the_fewest_when_kinds_are_moved_in_every_wave(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three hundred tight clusters with shards of four sizes, against an assignment problem."""
    monkeypatch.setattr(alike, "SHARDS_PER_KIND", 1)
    monkeypatch.setattr(waves, "MANY_MOVES", -1)
    blows = Counter[str]()
    together = Alike.settle

    def spy(self: Alike, *arguments: Any) -> None:
        blows["all"] += 1
        together(self, *arguments)

    monkeypatch.setattr(Alike, "settle", spy)
    for seed in range(300):
        problem = tight(seed)
        sizes = np.random.default_rng([seed, 1]).integers(1, 5, size=problem.shards)
        problem = replace(problem, shard_bytes=sizes)
        makespan_s = problem.least_makespan()
        answer, certificate = family.certified_optimal_bytes(problem, makespan_s)
        vet(problem, answer)
        moved = gap(problem, certificate, answer).moved_bytes
        assert moved == moved_by_lsa(problem, problem.capacity(makespan_s)), f"seed {seed}"
    assert blows["all"] > 300


def test_kinds_are_not_looked_for_where_nearly_every_shard_has_its_own() -> None:
    hdfs, ring = synthetic.hdfs(200_000, 2000, seed=1), synthetic.ring(200_000, 2000, seed=1)
    assert Alike.of(hdfs.replica_offsets, hdfs.replica_nodes, hdfs.nodes) is None
    found = Alike.of(ring.replica_offsets, ring.replica_nodes, ring.nodes)
    assert found is not None and found.holders.shape == (2000, 3)
    table = ring.replica_nodes.reshape(-1, 3)
    assert (found.holders[found.kind] == table).all()
    in_order = table[np.lexsort(table.T)]  # shards of a kind side by side, as the exact flow numbers them
    assert Alike.of(ring.replica_offsets, in_order.ravel(), ring.nodes) is not None
