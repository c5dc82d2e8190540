"""Estimates: what a plan moves, by formula, and honest about what only the run can tell."""

from __future__ import annotations

import json

from hypothesis import given, settings

from datalocal.catalog.model import Catalog
from datalocal.estimate.bytes import estimate
from datalocal.placement.model import Tier
from datalocal.placement.registry import POLICIES
from datalocal.spec.cluster import Cluster
from datalocal.spec.job import JobSpec
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
    for name, policy in POLICIES.items():
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
