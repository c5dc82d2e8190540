"""Which rows validate: by fraction, by a column's value, by the user's own function."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datalocal.errors import TaskError
from datalocal.spec.job import Columns, Validation
from datalocal.tasks.model import RowMask, SelectTask
from datalocal.tasks.select import fraction_mask, pack, run_select, unpack
from tests import gangs

FUNCTIONS = """
import numpy as np


def last_third(table):
    assert table.column_names == ["label", "split"], "the image column is not read"
    return np.arange(len(table)) >= len(table) * 2 // 3


def by_arrow(table):
    import pyarrow.compute as pc
    return pc.equal(table["label"], 1)


def wrong_shape(table):
    return np.ones(3, bool)


def raises(table):
    raise LookupError("no such split")
"""


@pytest.fixture
def world(tmp_path: Path) -> Iterator[gangs.World]:
    with gangs.world(tmp_path, {"p0": ("a", [6, 6])}, code={"choose_rows.py": FUNCTIONS}) as world:
        path = tmp_path / "a" / "data" / "photos" / "p0"
        table = pq.read_table(path).append_column("split", pa.array(["train", "test", None] * 4))
        pq.write_table(table, path, row_group_size=6)
        yield world


def select(world: gangs.World, **rule: Any) -> np.ndarray[Any, Any]:
    task = SelectTask(
        id="select-p0",
        arm="data-local",
        stage="train",
        node="b",
        attempt=1,
        wiring=world.wiring,
        dataset="photos",
        shard="p0",
        sources=("a",),
        columns=Columns(),
        validation=Validation(**rule),
        seed=4,
    )
    return unpack(run_select(task, world.contexts["b"]))


@given(st.integers(0, 2**32 - 1), st.text(max_size=9), st.integers(0, 300), st.floats(0.01, 0.99))
def test_a_rows_draw_depends_on_seed_shard_and_row_alone(seed: int, shard: str, rows: int, fraction: float) -> None:
    mask = fraction_mask(seed, shard, rows, fraction)
    assert np.array_equal(mask, fraction_mask(seed, shard, rows + 50, fraction)[:rows])
    assert (mask <= fraction_mask(seed, shard, rows, min(1.0, fraction + 0.1))).all(), (
        "a larger fraction keeps the same rows"
    )


def test_a_fraction_is_met_on_average_and_differs_between_seeds_and_shards() -> None:
    masks = [fraction_mask(seed, shard, 20_000, 0.2) for seed in (0, 1) for shard in ("a", "b")]
    assert all(abs(mask.mean() - 0.2) < 0.015 for mask in masks)
    assert all(abs((one & other).mean() - 0.04) < 0.01 for one in masks for other in masks if one is not other)


@given(st.lists(st.booleans(), max_size=40))
def test_packing_loses_nothing(values: list[bool]) -> None:
    assert unpack(pack(np.array(values, bool))).tolist() == values
    assert unpack(RowMask(rows=3)).tolist() == [True] * 3


def test_a_task_selects_by_fraction_from_the_footer(world: gangs.World) -> None:
    assert np.array_equal(select(world, fraction=0.5), fraction_mask(4, "p0", 12, 0.5))


def test_a_task_selects_by_a_columns_value_and_nulls_do_not_validate(world: gangs.World) -> None:
    assert select(world, column="split", value="test").tolist() == [False, True, False] * 4
    assert select(world, column="label", value=2).tolist() == [False, False, True] * 4
    (reported, *_) = world.kept.of("bytes")
    assert {(row["source"], row["destination"]) for row in reported["rows"] if row["class"] == "input"} == {("a", "b")}


def test_the_users_function_gets_the_table_without_the_images(world: gangs.World) -> None:
    assert select(world, function="choose_rows:last_third").tolist() == [False] * 8 + [True] * 4
    assert select(world, function="choose_rows:by_arrow").tolist() == [False, True, False] * 4


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"column": "fold", "value": 1}, r"p0 has no column 'fold'; its columns are image, label, split"),
        ({"column": "label", "value": "dog"}, r"column 'label' of p0 is int64 and cannot be compared with 'dog'"),
        ({"function": "choose_rows:wrong_shape"}, r"returned bool of shape \(3,\)"),
        ({"function": "choose_rows:raises"}, r"choose_rows:raises raised LookupError on p0: no such split"),
    ],
)
def test_a_rule_that_cannot_be_applied_is_refused_by_name(
    world: gangs.World, rule: dict[str, Any], message: str
) -> None:
    with pytest.raises(TaskError, match=message):
        select(world, **rule)
