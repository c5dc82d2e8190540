"""A step of a gang: laws of its formula, and the benchmark that holds it against measured steps."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.step_time import validate
from datalocal.estimate.steps import read_ahead_seconds, ring_seconds, step_seconds

seconds = st.floats(1e-3, 1e3)


@given(seconds, seconds, st.floats(1, 20))
def test_a_step_is_between_the_longer_part_and_both_after_each_other(compute: float, sync: float, gamma: float) -> None:
    found = step_seconds(compute, sync, gamma)
    assert max(compute, sync) * (1 - 1e-9) <= found <= (compute + sync) * (1 + 1e-9)
    assert found >= step_seconds(compute, sync, gamma + 1) * (1 - 1e-9), "a larger gamma hides more"
    assert step_seconds(7 * compute, 7 * sync, gamma) == pytest.approx(7 * found), "many steps are a long one"


@given(seconds, seconds, st.integers(1, 50))
def test_reading_ahead_is_a_line_of_two_machines(reading: float, working: float, pieces: int) -> None:
    read = worked = 0.0
    for _ in range(pieces):
        read += reading / pieces
        worked = max(read, worked) + working / pieces
    assert read_ahead_seconds(reading, working, pieces) == pytest.approx(worked)
    assert read_ahead_seconds(reading, working, float("inf")) == max(reading, working)


@given(st.integers(1, 1000), st.floats(1, 1e9), st.floats(1, 1e9), st.floats(0, 1))
def test_a_ring_sends_almost_two_copies_of_the_gradients_over_every_link(
    ranks: int, size: float, per_second: float, latency: float
) -> None:
    found = ring_seconds(ranks, size, per_second, latency)
    assert found == pytest.approx(2 * (ranks - 1) / ranks * size / per_second + 2 * (ranks - 1) * latency)
    assert (found == 0) == (ranks == 1)


def profile(file: Path, head: str, rows: dict[str, tuple[int, int]], *, gamma: float, noise: float = 0.0) -> None:
    """Steps of 0.1 s and 2 ms for each sample; a copy of the gradients takes 40 ms in a node, 250 ms between nodes."""
    lines = [f"local_bsz,step_time,sync_time,{head}"]
    for number, (key, (nodes, gpus)) in enumerate(rows.items()):
        for batch in (10, 50, 200):
            ring = ring_seconds(gpus, 0.04 if nodes == 1 else 0.25, 1.0, 0.001)
            wrong = 1 + noise * (-1) ** number
            lines.append(f"{batch},{step_seconds(0.1 + 0.002 * batch, ring, gamma) * wrong},0,{key}")
    file.parent.mkdir(exist_ok=True)
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")


PLACEMENTS = {
    "1": (1, 1),
    "2": (1, 2),
    "4": (1, 4),
    "11": (2, 2),
    "12": (2, 3),
    "44": (2, 8),
    "111": (3, 3),
    "444": (3, 12),
}
SCALE = {"2,6": (2, 6), "4,4": (4, 4), "4,16": (4, 16)}


def test_what_was_made_with_the_formula_is_foretold_by_it_and_nothing_else(tmp_path: Path) -> None:
    profile(tmp_path / "imagenet" / "placements-x.csv", "placement", PLACEMENTS, gamma=2.5)
    profile(tmp_path / "imagenet" / "scalability-x.csv", "num_nodes,num_replicas", SCALE, gamma=2.5)
    profile(tmp_path / "b" / "placements-x.csv", "placement", PLACEMENTS, gamma=2.5)
    told: list[str] = []
    (found,) = validate(tmp_path, told.append)
    assert (found.application, found.cluster, found.fitted, found.tested) == ("imagenet", "x", 24, 9)
    assert found.median_error < 0.002 and found.p90_error < 0.005
    assert found.gamma == pytest.approx(2.5, rel=0.05)
    assert found.default_median_error > found.median_error
    assert found.bytes_per_second == pytest.approx(102_228_128 / 0.25, rel=0.02)
    assert len(told) == 1 and "b/placements-x.csv" in told[0]
    profile(tmp_path / "imagenet" / "scalability-x.csv", "num_nodes,num_replicas", SCALE, gamma=2.5, noise=0.2)
    (off,) = validate(tmp_path, told.append)
    assert off.median_error == pytest.approx(0.2, rel=0.3)


def test_a_folder_without_profiles_is_said_to_be_one(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"placements-<cluster>\.csv"):
        list(validate(tmp_path))
