"""Choosing the nodes that train: the greedy gang keeps its promise, and racks and boxes are what they say."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datalocal.errors import PlacementError
from datalocal.placement import gangs, synthetic
from datalocal.placement.problem import Problem
from tests.test_placement_flow import problem_of, problems


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(problem=problems(sizes=True), size=st.integers(1, 8))
def test_the_greedy_gang_covers_at_least_1_minus_1_over_e_of_the_best_and_is_the_plain_greedy_one(
    problem: Problem, size: int
) -> None:
    able = np.flatnonzero(problem.rate > 0).tolist()
    if size > len(able):
        for choose in (gangs.most_covering, gangs.spread, gangs.rack_packed):
            with pytest.raises(PlacementError, match=f"{len(able)} that are up"):
                choose(problem, size)
        return
    best = max(gangs.covered_bytes(problem, gang) for gang in combinations(able, size))
    chosen = gangs.most_covering(problem, size)
    assert gangs.covered_bytes(problem, chosen) >= (1 - 1 / np.e) * best
    plain: list[int] = []
    for _ in range(size):
        left = [node for node in able if node not in plain]
        plain.append(max(left, key=lambda node: (gangs.covered_bytes(problem, [*plain, node]), -node)))
    assert gangs.covered_bytes(problem, chosen) == gangs.covered_bytes(problem, plain)
    racks = sorted((np.bincount(problem.rack[able])).tolist(), reverse=True)
    for choose in (gangs.most_covering, gangs.spread, gangs.rack_packed):
        gang = choose(problem, size)
        assert len(set(gang)) == size and set(gang) <= set(able)
    packed = len(set(problem.rack[gangs.rack_packed(problem, size)].tolist()))
    assert sum(racks[:packed]) >= size and sum(racks[: packed - 1]) < size, "as few racks as can be"
    wide = len(set(problem.rack[gangs.spread(problem, size)].tolist()))
    assert wide == min(size, sum(count > 0 for count in racks)), "as many racks as can be"


def test_one_box_is_the_largest_and_then_the_fullest() -> None:
    problem = problem_of([[0], [1], [1], [2]], [1, 4, 4], [1.0] * 3, [0] * 3, [5] * 4, set())
    assert gangs.one_box(problem) == [1]


def test_spread_gangs_cover_what_the_formula_says_and_packed_ones_less() -> None:
    """1,000 nodes in 25 racks, HDFS's rule: 1 - (1 - q)^3 spread; a block lies in two racks only, so whole racks cover less."""
    problem = synthetic.hdfs(20_000, 1000, seed=3)
    total = int(problem.shard_bytes.sum())
    shares = {
        choose.__name__: gangs.covered_bytes(problem, choose(problem, 120)) / total
        for choose in (gangs.spread, gangs.rack_packed, gangs.most_covering)
    }
    drawn = np.random.default_rng(0).permutation(1000)[:120].tolist()
    at_random = gangs.covered_bytes(problem, drawn) / total
    assert at_random == pytest.approx(1 - (1 - 0.12) ** 3, abs=0.02)
    assert shares["rack_packed"] < at_random - 0.05
    assert at_random < shares["spread"] <= shares["most_covering"]
