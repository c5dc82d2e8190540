"""Estimates: what a plan moves, by formula, and honest about what only the run can tell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from datalocal.catalog.model import Catalog, ShardEntry, build_catalog
from datalocal.estimate.bytes import checkpoints_per_epoch, estimate
from datalocal.estimate.reading import FOOTER_READ_BYTES, GROUP_BYTES, GROUP_ROWS, output_catalog
from datalocal.placement.model import Tier
from datalocal.placement.registry import POLICIES
from datalocal.spec.cluster import Cluster
from datalocal.spec.job import JobSpec, Train
from datalocal.storage.checkpoints import _nearest_last
from datalocal.tasks import shard_file
from datalocal.tasks.train.size import checkpoint_bytes
from tests.test_placement_policies import catalog, cluster, job, scenes

HERE = cluster(4)
FOUND = catalog([(100, (f"node{i % 4}", f"node{(i + 1) % 4}")) for i in range(8)], [node.name for node in HERE.nodes])
TRAIN = {"train": {"model": "m:net", "epochs": 3, "batch": 64}}


def test_central_nas_reads_everything_over_the_network_in_every_epoch() -> None:
    what = job(**TRAIN)
    found = estimate(POLICIES["central-nas"](what, FOUND, HERE), what, FOUND, HERE, gradient_bytes=10**6)
    assert found.summary.bytes_off_node == found.summary.bytes_off_rack == 3 * FOUND.total_bytes
    assert found.summary.by_class == {"input": 3 * FOUND.total_bytes}
    assert found.summary.local_byte_share == found.summary.local_task_share == 0.0


def test_central_staged_moves_everything_once() -> None:
    what = job(**TRAIN)
    found = estimate(POLICIES["central-staged"](what, FOUND, HERE), what, FOUND, HERE, gradient_bytes=10**6)
    assert found.summary.by_class == {"staging": FOUND.total_bytes}
    assert found.summary.local_task_share == 1.0
    assert found.summary.input_bytes == 4 * FOUND.total_bytes
    assert found.summary.local_byte_share == 0.75


def test_data_local_training_moves_only_gradients_by_the_ring_formula() -> None:
    what = job(**TRAIN)
    found = estimate(POLICIES["data-local"](what, FOUND, HERE), what, FOUND, HERE, gradient_bytes=1_300_000)
    steps = 3 * 13  # ceil(800 / 64) = 13
    assert found.summary.by_class == {"gradients": 2 * 3 * 1_300_000 * steps}
    ring = [row for row in found.rows if row.class_ == "gradients"]
    assert [(row.source, row.destination) for row in ring] == [
        ("node0", "node1"),
        ("node1", "node2"),
        ("node2", "node3"),
        ("node3", "node0"),
    ]
    assert {row.origin for row in ring} == {"modelled.theory"}
    assert len({row.bytes for row in ring}) == 1


def test_a_validated_fraction_makes_fewer_steps() -> None:
    what = job(train={**TRAIN["train"], "validation": {"fraction": 0.5}})
    found = estimate(POLICIES["data-local"](what, FOUND, HERE), what, FOUND, HERE, gradient_bytes=1000)
    assert found.summary.by_class == {"gradients": 2 * 3 * 1000 * 3 * 7}


def test_what_cannot_be_known_is_none_with_a_reason() -> None:
    what = job()
    found = estimate(POLICIES["data-local"](what, FOUND, HERE), what, FOUND, HERE)
    unknown = [row for row in found.rows if row.bytes is None]
    assert {row.class_ for row in unknown} == {"output", "input", "gradients"}
    assert all(row.reason for row in unknown) and not any(row.reason for row in found.rows if row.bytes is not None)
    assert len(found.summary.unknown) == 3
    assert found.summary.bytes_off_node == 0 and found.summary.input_bytes == FOUND.total_bytes


def test_one_compute_node_alone_has_no_gradient_traffic() -> None:
    what = job(**TRAIN)
    found = estimate(POLICIES["central-nas"](what, FOUND, HERE), what, FOUND, HERE)
    assert "gradients" not in {row.class_ for row in found.rows}
    assert not found.summary.unknown


@given(scene=scenes())
@settings(max_examples=30, deadline=None)
def test_sums_conserve_and_data_local_reads_never_move_more_than_any_other_policy(
    scene: tuple[JobSpec, Catalog, Cluster],
) -> None:
    what, found, here = scene
    moved = {}
    for name in ("data-local", "random", "reduce-then-ship", "central-nas", "central-staged"):
        policy = POLICIES[name]
        if name == "reduce-then-ship" and what.preprocess is None:
            continue
        result = estimate(policy(what, found, here), what, found, here, gradient_bytes=4)
        rows = [row for row in result.rows if row.bytes is not None]
        assert result.summary.bytes_off_node == sum(row.bytes or 0 for row in rows if row.tier != Tier.NODE_LOCAL)
        assert all((row.tier == Tier.NODE_LOCAL) == (row.source == row.destination) for row in rows)
        if what.preprocess is not None:
            reads = sum(row.bytes or 0 for row in rows if row.stage == "preprocess" and row.class_ == "input")
            assert reads == found.total_bytes
        moved[name] = sum(v for k, v in result.summary.by_class.items() if k in ("input", "staging"))
        assert json.loads(json.dumps(result.to_json()))["policy"] == name
    assert moved["data-local"] == 0 == min(moved.values())


# Where it is known which rows train


def two_groups() -> Catalog:
    """One shard of 3 MB: row groups of 10 rows with 1 MB and of 20 rows with 2 MB."""
    entry = ShardEntry(
        key="a.parquet", bytes=3_100_000, replicas=("node0",), group_rows=(10, 20), group_bytes=(10**6, 2 * 10**6)
    )
    return build_catalog(dataset="photos", nodes=[node.name for node in HERE.nodes], entries=[entry])


@pytest.mark.parametrize(("policy", "tier"), [("data-local", Tier.NODE_LOCAL), ("central-nas", Tier.OFF_RACK)])
def test_row_groups_are_read_by_who_trains_and_by_who_validates_on_them(policy: str, tier: Tier) -> None:
    """15 rows train, in both groups; 15 validate, in the second alone; twice, and the footer once, and once more to ask."""
    what = job(train={**TRAIN["train"], "epochs": 2, "batch": 4, "validation": {"column": "split", "value": "val"}})
    training = {"a.parquet": np.arange(30) < 15}
    found = estimate(
        POLICIES[policy](what, two_groups(), HERE), what, two_groups(), HERE, gradient_bytes=9, training=training
    )
    read = [row for row in found.rows if row.class_ == "input"]
    assert {row.tier for row in read} == {tier}
    assert sum(row.bytes or 0 for row in read) == 2 * (3 * 10**6 + 2 * 10**6) + 2 * FOOTER_READ_BYTES
    gang = found.gangs["train"]
    assert gang.steps == 4
    assert sum(gang.trained_rows.values()) == 15 == sum(gang.validated_rows.values())


def test_steps_are_of_the_rows_that_train_also_where_the_size_of_what_is_read_is_not_known() -> None:
    """What preprocess writes is only known afterwards; that 500 of its 800 rows train is known before."""
    what = job(train=TRAIN["train"], preprocess={"transform": "m:f", "output": "small"})
    training = {key: np.arange(rows) < rows * 5 // 8 for key, rows in zip(FOUND.shards, FOUND.shard_rows, strict=True)}
    plan = POLICIES["data-local"](what, FOUND, HERE)
    found = estimate(plan, what, FOUND, HERE, gradient_bytes=1_300_000, training=training)
    rows = sum(int(mask.sum()) for mask in training.values())
    assert 0.5 * FOUND.total_rows < rows < 0.7 * FOUND.total_rows
    steps = 3 * -(-rows // 64)
    assert found.summary.by_class["gradients"] == 2 * 3 * 1_300_000 * steps


def test_what_a_shuffle_exchanges_is_counted_apart_and_differs_from_epoch_to_epoch() -> None:
    what = job(train={**TRAIN["train"], "epochs": 3, "batch": 40, "shuffle": "partial", "exchange": 0.5})
    entries = [
        ShardEntry(
            key=f"{i}.parquet", bytes=10**6, replicas=(f"node{i}",), group_rows=(50, 50), group_bytes=(5 * 10**5,) * 2
        )
        for i in range(4)
    ]
    found = build_catalog(dataset="photos", nodes=[node.name for node in HERE.nodes], entries=entries)
    training = {entry.key: np.ones(100, dtype=bool) for entry in entries}
    moved = estimate(POLICIES["data-local"](what, found, HERE), what, found, HERE, gradient_bytes=1, training=training)
    exchanged = moved.summary.by_class["exchange"]
    assert exchanged % (5 * 10**5) == 0 and exchanged >= 3 * 4 * 5 * 10**5, "half of the rows of each rank, each epoch"
    kept = job(train={**what.model_dump()["train"], "shuffle": "local", "exchange": None})
    at_home = estimate(
        POLICIES["data-local"](kept, found, HERE), kept, found, HERE, gradient_bytes=1, training=training
    )
    assert "exchange" not in at_home.summary.by_class


def test_a_checkpoint_is_sent_every_so_many_steps_and_at_the_end_of_an_epoch() -> None:
    what = job(train={**TRAIN["train"], "epochs": 2, "batch": 4, "checkpoint_every_steps": 3})
    assert what.train is not None
    assert [checkpoints_per_epoch(what.train, steps) for steps in (1, 3, 4, 6, 7)] == [1, 1, 2, 2, 3]
    training = {"a.parquet": np.ones(30, dtype=bool)}
    plan = POLICIES["central-nas"](what, two_groups(), HERE)
    found = estimate(plan, what, two_groups(), HERE, checkpoint_bytes=1000, training=training)
    assert [(row.destination, row.bytes) for row in found.rows if row.class_ == "checkpoint"] == [
        ("head", 2 * 3 * 1000)
    ]


def test_copies_of_checkpoints_lie_where_the_store_puts_them() -> None:
    """The writer is on node0 of rack0, with node2; node1 and node3 are in rack1."""
    what = job(train={**TRAIN["train"], "epochs": 1, "batch": 30, "checkpoint_replication": 2})
    training = {"a.parquet": np.ones(30, dtype=bool)}
    plan = POLICIES["data-local"](what, two_groups(), HERE)
    found = estimate(plan, what, two_groups(), HERE, checkpoint_bytes=1000, gradient_bytes=300, training=training)
    rows = {row.destination: row for row in found.rows if row.class_ == "checkpoint"}
    assert {name: row.bytes for name, row in rows.items()} == {"head": 1000, "node0": 1300, "node1": 1300}
    assert rows["node0"].tier == Tier.NODE_LOCAL and rows["node1"].tier == Tier.OFF_RACK
    assert list(_nearest_last(HERE, "node0"))[:2] == ["node0", "node1"], "as the store does"


def test_what_preprocess_will_have_written_has_the_row_groups_that_it_writes() -> None:
    assert (GROUP_ROWS, GROUP_BYTES) == (shard_file.MAX_GROUP_ROWS, shard_file.GROUP_BYTES)
    what = job()
    found = build_catalog(
        dataset="photos",
        nodes=["node0"],
        entries=[
            ShardEntry(key="a", bytes=10**6, replicas=("node0",), group_rows=(1200,), group_bytes=(10**6,)),
            ShardEntry(key="b", bytes=10**9, replicas=("node0",), group_rows=(300,), group_bytes=(10**9,)),
        ],
    )
    stage = POLICIES["data-local"](what, found, HERE).stages[0]
    made = output_catalog(found, stage, 0.5)
    assert made.groups(0).tolist() == [500, 500, 200]
    assert made.groups(1).tolist() == [100, 100, 100], "a group of large images ends early"
    assert made.shard_bytes.tolist() == [500_000, 500_000_000]


def test_row_groups_of_one_split_stay_apart_in_what_preprocess_will_have_written() -> None:
    what = job()
    found = build_catalog(
        dataset="photos",
        nodes=["node0"],
        entries=[
            ShardEntry(key=key, bytes=10**6, replicas=("node0",), group_rows=rows, group_bytes=(10**5,) * len(rows))
            for key, rows in (("a", (600, 80, 20, 40)), ("b", (300, 100)), ("c", (300, 100)))
        ],
    )
    stage = POLICIES["data-local"](what, found, HERE).stages[0]
    mixed = np.arange(400) % 5 > 0
    masks = {"a": np.repeat([True, False, False, True], [600, 80, 20, 40]), "b": mixed}
    made = output_catalog(found, stage, 1.0, masks)
    assert made.groups(0).tolist() == [500, 100, 100, 40]
    assert made.groups(1).tolist() == made.groups(2).tolist() == [400], "no group of one split, and nothing known"


@pytest.mark.parametrize(("validation", "apart"), [({"column": "split", "value": "val"}, 1), ({"fraction": 0.5}, 2)])
def test_rows_that_validate_are_foretold_to_be_read_once_where_their_row_groups_are_their_own(
    validation: dict[str, Any], apart: int
) -> None:
    """One epoch under a central arm: what trains and what validates together is the data set, once. Else both read all of it."""
    found = build_catalog(
        dataset="photos",
        nodes=["node0"],
        entries=[
            ShardEntry(
                key="a", bytes=10**6, replicas=("node0",), group_rows=(160, 40), group_bytes=(8 * 10**5, 2 * 10**5)
            )
        ],
    )
    train = {**TRAIN["train"], "epochs": 1, "validation": validation}
    what = job(preprocess={"transform": "m:f", "output": "small"}, train=train)
    masks = {"a": np.repeat([True, False], [160, 40])}
    told = estimate(POLICIES["central-nas"](what, found, HERE), what, found, HERE, output_share=0.5, training=masks)
    read = sum(row.bytes or 0 for row in told.rows if row.class_ == "input" and row.stage == "train")
    footers = 3 * FOOTER_READ_BYTES
    assert 0 <= read - apart * 500_000 <= footers


MODEL = """
import torch

def net(classes):
    return torch.nn.Sequential(torch.nn.Linear(1000, 100), torch.nn.BatchNorm1d(100), torch.nn.Linear(100, classes))
"""


@pytest.mark.parametrize(
    ("optimizer", "copies"),
    [
        ({"name": "torch.optim:SGD", "arguments": {"lr": 0.1}}, 1),
        ({"name": "torch.optim:SGD", "arguments": {"lr": 0.1, "momentum": 0.9}}, 2),
        ({"name": "torch.optim:AdamW", "arguments": {"lr": 0.1}}, 3),
    ],
)
def test_a_checkpoint_holds_the_model_and_what_the_optimizer_keeps(
    optimizer: dict[str, object], copies: int, tmp_path: Path
) -> None:
    (tmp_path / "net_of_a_test.py").write_text(MODEL, encoding="utf-8")
    train = Train.model_validate({"model": "net_of_a_test:net", "optimizer": optimizer})
    parameters = 4 * (1000 * 100 + 100 + 2 * 100 + 100 * 10 + 10)
    assert checkpoint_bytes(train, tmp_path, 10) == pytest.approx(copies * parameters, rel=0.03)
