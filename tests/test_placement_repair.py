"""Repair: what a lost node leaves goes to those who hold it, evenly, and results keep their copies."""

from __future__ import annotations

import pytest

from datalocal.catalog.model import ShardEntry, build_catalog
from datalocal.errors import PlacementError
from datalocal.placement.model import StagePlan
from datalocal.placement.registry import POLICIES
from datalocal.placement.repair import current, replace
from tests.test_placement_policies import BOTH, catalog, cluster, job, stage

HERE = cluster(4, compute=2)
NAMES = [node.name for node in HERE.nodes]
FOUND = catalog([(10, (f"node{i % 4}", f"node{(i + 1) % 4}")) for i in range(16)], NAMES)
ALIVE = set(NAMES) - {"node1"}


def preprocess(policy: str = "data-local") -> StagePlan:
    return stage(POLICIES[policy](job(), FOUND, HERE), "preprocess")


def orphans(plan: StagePlan, node: str = "node1") -> list[str]:
    return [assignment.shard for assignment in plan.assignments if assignment.node == node]


def test_orphans_go_to_other_holders_and_stay_local() -> None:
    plan = preprocess()
    lost = orphans(plan)
    moved = replace(plan, lost, FOUND.without_nodes(["node1"]), HERE, ALIVE)
    assert [assignment.shard for assignment in moved] == lost
    for assignment in moved:
        assert assignment.local and not assignment.reason
        assert assignment.outputs[0] == assignment.node
        assert len(set(assignment.outputs)) == 2 and "node1" not in assignment.outputs


def test_orphans_are_spread_over_those_who_can_take_them() -> None:
    here = cluster(3)
    found = catalog([(10, ("node0", "node1", "node2"))] * 12, [node.name for node in here.nodes])
    plan = stage(POLICIES["data-local"](job(), found, here), "preprocess")
    moved = replace(plan, orphans(plan), found.without_nodes(["node1"]), here, {"node0", "node2", "central0"})
    assert sorted(assignment.node for assignment in moved) == ["node0"] * 2 + ["node2"] * 2


def test_without_a_holder_among_the_workers_the_reason_names_the_lost_node_and_the_source() -> None:
    plan = preprocess("reduce-then-ship")
    shard = next(a.shard for a in plan.assignments if a.node == "node1")
    holders = FOUND.replicas(FOUND.index(shard))
    other = next(name for name in holders if name != "node1")
    (moved,) = replace(plan, [shard], FOUND.without_nodes(["node1"]), HERE, ALIVE - {other})
    assert moved.sources == (other,) and moved.node != other
    assert "node1 is lost" in moved.reason and other in moved.reason
    assert moved.outputs and moved.outputs[0].startswith("central")


def test_central_work_goes_to_the_other_compute_node_and_its_results_back_to_storage() -> None:
    plan = preprocess("central-nas")
    lost = orphans(plan, "central0")
    moved = replace(plan, lost, FOUND, HERE, set(NAMES) - {"central0"})
    before = {assignment.shard: assignment for assignment in plan.assignments}
    for assignment in moved:
        assert assignment.node == "central1"
        assert assignment.reason == "no replica on a compute node"
        assert set(assignment.outputs) == set(before[assignment.shard].outputs)


def test_a_train_stage_gets_no_outputs() -> None:
    plan = stage(POLICIES["data-local"](job(train={"model": "m:net"}), FOUND, HERE), "train")
    moved = replace(plan, orphans(plan), FOUND.without_nodes(["node1"]), HERE, ALIVE)
    assert moved and all(assignment.local and not assignment.outputs for assignment in moved)


@pytest.mark.parametrize(
    ("gang", "lost", "size"),
    [
        ({"choose": "spread", "nodes": 2}, 1, 1),
        ({"choose": "spread", "nodes": 2}, 2, 2),
        ({"choose": "one-box"}, 1, 1),
    ],
)
def test_a_gang_that_loses_a_node_stays_among_its_own_and_one_that_loses_all_is_chosen_anew(
    gang: dict[str, object], lost: int, size: int
) -> None:
    here = cluster(5, compute=2)
    names = [node.name for node in here.nodes]
    found = catalog([(10, tuple(f"node{(i + k) % 5}" for k in range(3))) for i in range(15)], names)
    spec = job(train={"model": "m:net", "gang": gang})
    assert spec.train is not None and spec.train.gang is not None
    plan = stage(POLICIES["data-local"](spec, found, here), "train")
    alive = set(names) - set(plan.nodes[:lost])
    now = current(plan, found, here, alive, spec.train.gang)
    nodes = {assignment.node for assignment in now}
    assert len(nodes) == size and nodes <= alive
    assert lost == len(plan.nodes) or nodes < set(plan.nodes)
    assert [assignment.shard for assignment in now] == list(found.shards)
    for assignment in now:
        assert assignment.local == (assignment.node in found.replicas(found.index(assignment.shard)))
        assert assignment.local or assignment.reason
    everybody = current(plan, found, here, alive)
    assert len({assignment.node for assignment in everybody}) > size, "without a gang all who hold the data train"


def test_with_too_few_nodes_left_the_results_keep_fewer_copies() -> None:
    plan = preprocess()
    lost = orphans(plan)
    (moved, *_) = replace(plan, lost[:1], FOUND, HERE, {"node2"})
    assert moved.outputs == ("node2",)


def test_no_node_of_the_role_is_left() -> None:
    plan = preprocess("central-nas")
    with pytest.raises(PlacementError, match=r"none of the 4 nodes that are up .*central0, central1") as refused:
        replace(plan, [plan.assignments[0].shard], FOUND, HERE, {"node0", "node1", "node2", "node3"})
    assert "resume" in refused.value.hint


def test_no_replica_is_left() -> None:
    plan = preprocess()
    lost = orphans(plan)[:1]
    gone = FOUND.replicas(FOUND.index(lost[0]))
    left = len(set(NAMES) - set(gone))
    with pytest.raises(PlacementError, match=f"photos/{lost[0]} has no replica on any of the {left} nodes"):
        replace(plan, lost, FOUND.without_nodes(gone), HERE, set(NAMES) - set(gone))


def test_no_compute_node_is_left_for_what_is_shipped() -> None:
    plan = preprocess("reduce-then-ship")
    with pytest.raises(PlacementError, match="nowhere to go"):
        replace(plan, orphans(plan), FOUND, HERE, {"node0", "node2", "node3"})


def test_shards_that_are_read_from_copies_lie_where_the_copies_are_and_their_loss_says_to_resume() -> None:
    here = cluster(4, compute=2)
    base = catalog([(10, ("node0", "node1"))] * 8, [node.name for node in here.nodes])
    what = job(train=BOTH["train"])
    staging, train = POLICIES["central-cached"](what, base, here).stages
    kept = {a.shard: a.outputs for a in staging.assignments}
    copies = build_catalog(
        dataset="staged/run/photos",
        nodes=["central0", "central1"],
        entries=[
            ShardEntry(key=key, bytes=10_000, replicas=held, group_rows=(10,), group_bytes=(10,))
            for key, held in kept.items()
        ],
    )
    merged = base.with_copies(copies)
    assert merged.shards == base.shards and (merged.shard_rows == base.shard_rows).all()
    for number, key in enumerate(merged.shards):
        folder = "staged/run/photos" if key in kept else "photos"
        assert merged.where(key) == folder and merged.path(number) == f"{folder}/{key}"
        assert merged.replicas(number) == kept.get(key, ("node0", "node1"))
    names = [node.name for node in here.nodes]
    assert current(train, merged, here, names) == list(train.assignments)
    with pytest.raises(PlacementError, match="kept on a node that is gone") as lost:
        current(train, merged, here, [name for name in names if name != "central1"])
    assert "resume" in lost.value.hint
    left = current(train, base, here, [name for name in names if name != "central1"])
    assert {a.node for a in left} == {"central0"}, "after a resume without the copies the data set stands in for them"
