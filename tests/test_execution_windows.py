"""How many row groups a rank mixes: as many images as usual, also where row groups are small, and in no more memory."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from datalocal.execution.training import WINDOW_BYTES, _window_groups
from datalocal.tasks.shard_file import GROUP_BYTES, MAX_GROUP_ROWS, MIN_GROUP_ROWS
from datalocal.tasks.train.order import WINDOW_GROUPS, WINDOW_IMAGES


def groups(piece_rows: int, row_bytes: int, *, row_by_row: bool = False) -> int:
    """Of two ranks with ten pieces each."""
    share = SimpleNamespace(segments=[None] * 10)
    epoch: Any = SimpleNamespace(
        plan=SimpleNamespace(shares=[share, share], samples=20 * piece_rows), row_by_row=row_by_row
    )
    return _window_groups(epoch, row_bytes)


@pytest.mark.parametrize(("piece_rows", "row_bytes"), [(MAX_GROUP_ROWS, 1000), (MIN_GROUP_ROWS, GROUP_BYTES // 100)])
def test_row_groups_as_we_write_them_come_four_at_a_time(piece_rows: int, row_bytes: int) -> None:
    assert groups(piece_rows, row_bytes) == WINDOW_GROUPS


def test_of_small_row_groups_a_window_has_as_many_images_as_of_others() -> None:
    assert groups(50, 300) == WINDOW_IMAGES // 50
    assert groups(1, 300) == WINDOW_IMAGES


@pytest.mark.parametrize("row_bytes", [10_000, 100_000, 1_000_000, 10_000_000])
def test_memory_stays_what_four_of_the_largest_row_groups_take(row_bytes: int) -> None:
    found = groups(10, row_bytes)
    assert found == WINDOW_GROUPS or found * 10 * row_bytes <= WINDOW_GROUPS * GROUP_BYTES
    assert found * 10 == WINDOW_IMAGES or (found + 1) * 10 * row_bytes > WINDOW_GROUPS * GROUP_BYTES, "and no less"


def test_rows_that_are_dealt_one_by_one_have_the_larger_memory() -> None:
    assert groups(10, 1000, row_by_row=True) == WINDOW_BYTES // 10_000


def test_an_epoch_without_a_sample_has_windows_too() -> None:
    epoch: Any = SimpleNamespace(plan=SimpleNamespace(shares=[], samples=0), row_by_row=False)
    assert _window_groups(epoch, 0.0) >= WINDOW_GROUPS
