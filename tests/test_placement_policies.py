"""Policies: every shard once, local where it can be, balanced, and the same whatever order things come in."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datalocal.catalog.model import Catalog, ShardEntry, build_catalog
from datalocal.errors import PlacementError
from datalocal.placement import mincost, quincy
from datalocal.placement.balance import _rounded_flow, balance
from datalocal.placement.division import plan_epoch
from datalocal.placement.epochs import slots_of
from datalocal.placement.family import FAMILY, NEED_A_JOB, placing
from datalocal.placement.forest import to_forest
from datalocal.placement.model import Assignments, Plan, StagePlan
from datalocal.placement.policies import check
from datalocal.placement.registry import POLICIES, policy_named
from datalocal.placement.rules import RULES, DaskDefault, DaskReplicas, SparkDelay, YarnDelay
from datalocal.spec.cluster import Cluster
from datalocal.spec.job import JobSpec

ONLINE = tuple(RULES)


@pytest.fixture(autouse=True, scope="module")
def _solved_here() -> Iterator[None]:
    """Quincy's graph is solved in this process: a process for each of hundreds would take minutes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quincy, "solve", lambda graph, timeout_s: mincost.solve_here(graph))
        yield


BOTH = {"preprocess": {"transform": "m:f", "output": "small"}, "train": {"model": "m:net"}}


def job(**parts: Any) -> JobSpec:
    return JobSpec.model_validate({"name": "test", "dataset": "photos", **(parts or BOTH)})


def cluster(storage: int = 4, compute: int = 1, racks: int = 2, **per_node: Any) -> Cluster:
    nodes = [{"name": f"node{i}", "rack": f"rack{i % racks}", **per_node} for i in range(storage)]
    nodes += [{"name": f"central{i}", "rack": "central", "role": "compute"} for i in range(compute)]
    nodes.append({"name": "array0", "rack": "array", "role": "array"})
    power = {"idle_watts": 100, "busy_watts": 300}
    return Cluster.model_validate({"name": "small", "replication": 1, "power": power, "nodes": nodes})


def catalog(shards: list[tuple[int, tuple[str, ...]]], nodes: list[str]) -> Catalog:
    """Shards as (rows, replica holders)."""
    return build_catalog(
        dataset="photos",
        nodes=nodes,
        entries=[
            ShardEntry(
                key=f"part-{i:05d}.parquet", bytes=1000 * rows, replicas=held, group_rows=(rows,), group_bytes=(rows,)
            )
            for i, (rows, held) in enumerate(shards)
        ],
    )


def stage(plan: Plan, kind: str) -> StagePlan:
    return next(stage for stage in plan.stages if stage.kind == kind)


@st.composite
def scenes(draw: st.DrawFn) -> tuple[JobSpec, Catalog, Cluster]:
    storage = draw(st.integers(1, 6))
    here = cluster(storage, draw(st.integers(1, 3)), racks=draw(st.integers(1, 3)))
    names = [node.name for node in here.storage_nodes]
    held = st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True).map(tuple)
    shards = draw(st.lists(st.tuples(st.integers(0, 50), held), min_size=1, max_size=12))
    parts = draw(st.sampled_from([BOTH, {"preprocess": BOTH["preprocess"]}, {"train": BOTH["train"]}]))
    return job(**parts, seed=draw(st.integers(0, 9))), catalog(shards, [node.name for node in here.nodes]), here


def suits(name: str, what: JobSpec) -> bool:
    """Whether the policy can plan the job at all."""
    return what.preprocess is not None or name != "reduce-then-ship"


@given(scene=scenes())
@settings(max_examples=60, deadline=None)
def test_every_policy_makes_a_plan_that_holds_and_survives_its_json(scene: tuple[JobSpec, Catalog, Cluster]) -> None:
    what, found, here = scene
    for name, policy in POLICIES.items():
        if not suits(name, what):
            continue
        plan = policy(what, found, here)
        check(plan, what, found, here)
        assert plan.policy == name
        assert Plan.from_json(plan.to_json()) == plan


@given(scene=scenes(), order=st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_the_order_of_nodes_and_shards_does_not_matter(
    scene: tuple[JobSpec, Catalog, Cluster], order: random.Random
) -> None:
    what, found, here = scene
    nodes, numbers = list(here.nodes), list(range(len(found)))
    order.shuffle(nodes)
    order.shuffle(numbers)
    mixed = here.model_copy(update={"nodes": tuple(nodes)})
    other = build_catalog(
        dataset=found.dataset,
        nodes=[node.name for node in nodes],
        entries=[
            ShardEntry(
                key=found.shards[i],
                bytes=int(found.shard_bytes[i]),
                replicas=tuple(reversed(found.replicas(i))),
                group_rows=tuple(found.groups(i).tolist()),
                group_bytes=(0,),
            )
            for i in numbers
        ],
    )
    for name, policy in POLICIES.items():
        if suits(name, what):
            assert policy(what, other, mixed) == policy(what, found, here)


@given(scene=scenes())
@settings(max_examples=40, deadline=None)
def test_data_local_is_local_everywhere_and_keeps_the_number_of_replicas(
    scene: tuple[JobSpec, Catalog, Cluster],
) -> None:
    what, found, here = scene
    plan = POLICIES["data-local"](what, found, here)
    assert all(assignment.local for part in plan.stages for assignment in part.assignments)
    for part in plan.stages:
        for assignment in part.assignments:
            if part.kind == "preprocess":
                held = found.replicas(found.index(assignment.shard))
                assert assignment.outputs[0] == assignment.node
                assert set(assignment.outputs) == set(held)


@given(
    scene=scenes(), name=st.sampled_from(["hdfs-greedy", "optimal-bytes", "dask-replicas", "spark-delay", "yarn-delay"])
)
@settings(max_examples=60, deadline=None)
def test_policies_that_know_replicas_train_where_the_results_or_shards_lie(
    scene: tuple[JobSpec, Catalog, Cluster], name: str
) -> None:
    what, found, here = scene
    plan = POLICIES[name](what, found, here)
    assert all(assignment.local for part in plan.stages if part.kind == "train" for assignment in part.assignments)
    for part in plan.stages:
        for assignment in part.assignments if part.kind == "preprocess" else ():
            assert assignment.outputs[0] == assignment.node
            assert len(assignment.outputs) == len(found.replicas(found.index(assignment.shard)))


GANG = {"model": "m:net", "gang": {"nodes": 2, "choose": "most-covering"}}


@pytest.mark.parametrize("name", ["data-local", "optimal-bytes", "spark-delay"])
def test_a_chosen_gang_trains_alone_and_reads_what_none_of_it_holds(name: str) -> None:
    held = [("node0",)] * 5 + [("node1", "node2")] * 4 + [("node3",)] * 2
    what, where = catalog([(100, nodes) for nodes in held], [f"node{i}" for i in range(4)]), cluster()
    plan = policy_named(name)(job(train=GANG), what, where)
    check(plan, job(train=GANG), what, where)
    train = stage(plan, "train")
    assert train.nodes in (("node0", "node1"), ("node0", "node2")), "these hold 9 of the 11 shards"
    away = {a.shard: a.reason for a in train.assignments if not a.local}
    assert set(away.values()) == {"no node of the gang holds a replica"}
    assert set(away) == {"part-00009.parquet", "part-00010.parquet"}


@pytest.mark.parametrize("name", ["data-local", "optimal-bytes"])
def test_a_gang_takes_the_writer_of_everything_and_those_that_can_take_a_share_off_it(name: str) -> None:
    """node0 wrote it all, second replicas lie in the other rack: node2 and node4, in its own, hold nothing."""
    held = [("node0", f"node{1 + 2 * (i % 3)}") for i in range(12)]
    what, where = catalog([(100, nodes) for nodes in held], [f"node{i}" for i in range(6)]), cluster(storage=6)
    spec = job(train={"model": "m:net", "gang": {"nodes": 3}})
    train = stage(policy_named(name)(spec, what, where), "train")
    assert train.nodes[0] == "node0" and len(train.nodes) == 3
    assert not {"node2", "node4"} & {*train.nodes}
    assert all(assignment.local for assignment in train.assignments)
    epoch = plan_epoch(
        train.assignments, {key: [100] for key in what.shards}, slots_of(train.nodes, Counter(train.nodes)), 3
    )
    assert [share.samples for share in epoch.shares] == [400] * 3
    assert epoch.away == 0


@pytest.mark.parametrize("choose", ["spread", "rack-packed", "one-box"])
def test_a_gang_is_chosen_among_the_holders_of_the_results(choose: str) -> None:
    """Results lie beside the input, on two nodes of each rack; node2 has the most slots."""
    gang = {"choose": choose} | ({} if choose == "one-box" else {"nodes": 2})
    what = catalog([(100, (f"node{i % 4}",)) for i in range(12)], [f"node{i}" for i in range(4)])
    nodes = [node.model_copy(update={"slots": 4 if node.name == "node2" else 1}) for node in cluster().nodes]
    where = cluster().model_copy(update={"nodes": tuple(nodes)})
    spec = job(preprocess=BOTH["preprocess"], train={"model": "m:net", "gang": gang})
    plan = policy_named("data-local")(spec, what, where)
    check(plan, spec, what, where)
    racks = [where.rack_of(node) for node in stage(plan, "train").nodes]
    assert len(stage(plan, "preprocess").nodes) == 4, "preprocessing is every holder's"
    if choose == "one-box":
        assert stage(plan, "train").nodes == ("node2",)
    else:
        assert len(racks) == 2 and len(set(racks)) == (2 if choose == "spread" else 1)


def test_a_gang_larger_than_the_cluster_is_refused_with_both_numbers() -> None:
    what = catalog([(100, ("node0",))], ["node0"])
    spec = job(train={"model": "m:net", "gang": {"nodes": 5}})
    with pytest.raises(PlacementError, match="5 nodes cannot be had from 4"):
        policy_named("data-local")(spec, what, cluster())


@pytest.mark.parametrize(
    ("gang", "told"),
    [({"choose": "one-box", "nodes": 2}, "one node, not 2"), ({"choose": "spread"}, "needs `nodes`")],
)
def test_a_gang_that_contradicts_itself_is_refused(gang: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        job(train={"model": "m:net", "gang": gang})


def test_a_rule_is_in_the_plan_with_what_the_job_tells_it() -> None:
    here = cluster(4)
    found = catalog([(10, ("node0", "node1"))] * 8, [node.name for node in here.nodes])
    told = job(**BOTH, policy_options={"spark_wait_seconds": 0.5, "yarn_missed_opportunities": 7})
    rules = {name: stage(POLICIES[name](told, found, here), "preprocess").rule for name in ONLINE}
    assert rules == {
        "dask-default": DaskDefault(),
        "dask-replicas": DaskReplicas(),
        "spark-delay": SparkDelay(wait_s=0.5),
        "yarn-delay": YarnDelay(misses=7),
    }
    assert stage(POLICIES["hdfs-greedy"](told, found, here), "preprocess").rule is None


def test_round_robin_deals_the_shards_in_turn_to_the_storage_nodes_in_both_stages() -> None:
    here = cluster(4)
    found = catalog([(10, ("node0",))] * 8, [node.name for node in here.nodes])
    plan = POLICIES["round-robin"](job(), found, here)
    for part in plan.stages:
        assert [assignment.node for assignment in part.assignments] == ["node0", "node1", "node2", "node3"] * 2


def test_every_placement_of_arrays_is_also_a_policy_of_jobs() -> None:
    assert set(FAMILY) <= set(POLICIES)
    assert set(POLICIES) - set(FAMILY) == NEED_A_JOB, (
        "what cannot be placed as arrays says so, and not that it is unknown"
    )
    with pytest.raises(PlacementError, match="central-nas") as refused:
        placing("central-nas")
    assert "submit" in refused.value.hint


@pytest.mark.parametrize(("share", "kept"), [(0.0, 0), (0.25, 2), (0.5, 4), (1.0, 8)])
def test_central_cached_keeps_its_share_of_the_results_and_reads_the_rest_over_the_network(
    share: float, kept: int
) -> None:
    here = cluster(4, compute=2)
    found = catalog([(10, ("node0", "node1"))] * 8, [node.name for node in here.nodes])
    plan = POLICIES["central-cached"](job(**BOTH, policy_options={"cached_share": share}), found, here)
    local = [assignment for assignment in stage(plan, "train").assignments if assignment.local]
    assert len(local) == kept
    for assignment in stage(plan, "preprocess").assignments:
        kept_there = assignment.outputs == (assignment.node,)
        assert kept_there or set(assignment.outputs) == {"node0", "node1"}


@pytest.mark.parametrize(("share", "kept"), [(0.0, 0), (0.25, 2), (0.5, 4), (1.0, 8)])
def test_central_cached_copies_the_kept_share_once_for_a_job_that_only_trains(share: float, kept: int) -> None:
    here = cluster(4, compute=2)
    found = catalog([(10, ("node0", "node1"))] * 8, [node.name for node in here.nodes])
    what = job(train=BOTH["train"], policy_options={"cached_share": share})
    plan = POLICIES["central-cached"](what, found, here)
    check(plan, what, found, here)
    assert Plan.from_json(plan.to_json()) == plan
    train = stage(plan, "train")
    home = {a.shard: a.node for a in train.assignments}
    assert sorted(home.values()) == ["central0"] * 4 + ["central1"] * 4
    assert sum(a.local for a in train.assignments) == kept
    copied = {a.shard for part in plan.stages if part.kind == "staging" for a in part.assignments}
    assert copied == {a.shard for a in train.assignments if a.local}
    assert train.input == ("cached" if kept else "dataset")
    for part in plan.stages[:-1]:
        assert part.kind == "staging" and all(a.outputs == (home[a.shard],) for a in part.assignments)


def test_copies_that_a_stage_needs_and_nobody_makes_are_found_by_the_check() -> None:
    here = cluster(4, compute=2)
    found = catalog([(10, ("node0", "node1"))] * 8, [node.name for node in here.nodes])
    what = job(train=BOTH["train"])
    plan = POLICIES["central-cached"](what, found, here)
    staging, train = plan.stages
    fewer = replace(staging, assignments=staging.assignments.only(np.arange(len(staging.assignments)) > 0))
    with pytest.raises(PlacementError, match="hold no replica"):
        check(replace(plan, stages=(fewer, train)), what, found, here)
    with pytest.raises(PlacementError, match="which no stage before it makes"):
        check(replace(plan, stages=(train,)), what, found, here)
    staged = POLICIES["central-staged"](what, found, here)
    some = replace(staged.stages[0], assignments=staged.stages[0].assignments.only(np.arange(8) > 0))
    with pytest.raises(PlacementError, match="hold no replica"):
        check(replace(staged, stages=(some, staged.stages[1])), what, found, here)


def test_san_loads_the_array_and_the_compute_nodes_read_from_nowhere_else() -> None:
    here = cluster(4, compute=2)
    found = catalog([(10, ("node0", "node1"))] * 8, [node.name for node in here.nodes])
    for what, inputs in ((job(), ["dataset", "staged", "output"]), (job(train=BOTH["train"]), ["dataset", "staged"])):
        loading, *working = POLICIES["san"](what, found, here).stages
        assert [part.input for part in (loading, *working)] == inputs
        assert loading.nodes == ("array0",)
        for part in working:
            assert part.nodes == ("central0", "central1")
            assert {assignment.sources for assignment in part.assignments} == {("array0",)}
    without = here.model_copy(update={"nodes": tuple(node for node in here.nodes if node.role != "array")})
    with pytest.raises(PlacementError, match="storage array") as refused:
        POLICIES["san"](job(), found, without)
    assert "role: array" in refused.value.hint


def test_random_leaves_no_storage_node_empty_and_follows_the_seed() -> None:
    here = cluster(4)
    found = catalog([(10, ("node0",))] * 6, [node.name for node in here.nodes])
    for seed in range(30):
        plan = POLICIES["random"](job(**BOTH, seed=seed), found, here)
        assert stage(plan, "preprocess").nodes == stage(plan, "train").nodes == ("node0", "node1", "node2", "node3")
    plans = [POLICIES["random"](job(**BOTH, seed=seed), found, here) for seed in (1, 1, 2)]
    assert plans[0] == plans[1] != plans[2]
    for assignment in stage(plans[0], "preprocess").assignments:
        assert assignment.sources == ("node0",)
        assert assignment.outputs == (assignment.node,)
        assert bool(assignment.reason) == (assignment.node != "node0")


def test_central_nas_spreads_its_reads_over_the_replica_holders() -> None:
    here = cluster(4)
    names = [node.name for node in here.nodes]
    found = catalog([(10, ("node0", "node1", "node2", "node3"))] * 8, names)
    for part in POLICIES["central-nas"](job(), found, here).stages:
        first = [assignment.sources[0] for assignment in part.assignments]
        assert sorted(first) == sorted(["node0", "node1", "node2", "node3"] * 2)
        assert part.nodes == ("central0",)
        assert all(assignment.reason == "no replica on a compute node" for assignment in part.assignments)


def test_central_policies_share_the_rows_between_compute_nodes() -> None:
    here = cluster(4, compute=2)
    found = catalog([(10, ("node0", "node1"))] * 8, [node.name for node in here.nodes])
    for name in ("central-nas", "central-cached", "central-staged", "reduce-then-ship", "san"):
        train = stage(POLICIES[name](job(), found, here), "train")
        assert [a.node for a in train.assignments].count("central0") == 4, name


def test_central_staged_copies_each_shard_once_and_works_on_the_copy() -> None:
    here = cluster(4)
    found = catalog([(10, ("node0", "node1")), (20, ("node2",))], [node.name for node in here.nodes])
    plan = POLICIES["central-staged"](job(), found, here)
    assert [(part.kind, part.input) for part in plan.stages] == [
        ("staging", "dataset"),
        ("preprocess", "staged"),
        ("train", "output"),
    ]
    assert not any(a.local for a in stage(plan, "staging").assignments)
    assert all(a.local and a.outputs == ("central0",) for a in stage(plan, "preprocess").assignments)
    without = POLICIES["central-staged"](job(train=BOTH["train"]), found, here)
    assert [part.input for part in without.stages] == ["dataset", "staged"]


def test_reduce_then_ship_writes_to_one_compute_node_only() -> None:
    here = cluster(4)
    found = catalog([(10, ("node0", "node1")), (20, ("node2",))], [node.name for node in here.nodes])
    plan = POLICIES["reduce-then-ship"](job(), found, here)
    for assignment in stage(plan, "preprocess").assignments:
        assert assignment.local and assignment.outputs == ("central0",)
    assert all(a.local for a in stage(plan, "train").assignments)


def test_reduce_then_ship_without_preprocess_says_what_to_do() -> None:
    here = cluster()
    found = catalog([(10, ("node0",))], [node.name for node in here.nodes])
    with pytest.raises(PlacementError, match="no `preprocess` stage") as refused:
        POLICIES["reduce-then-ship"](job(train=BOTH["train"]), found, here)
    assert "central-staged" in refused.value.hint


@pytest.mark.parametrize("name", ["central-nas", "central-cached", "central-staged", "reduce-then-ship", "san"])
def test_central_policies_need_a_compute_node(name: str) -> None:
    here = cluster(compute=0)
    found = catalog([(10, ("node0",))], [node.name for node in here.nodes])
    with pytest.raises(PlacementError, match="role `compute`") as refused:
        POLICIES[name](job(), found, here)
    assert "data-local" in refused.value.hint


def test_a_shard_that_nobody_alive_holds_is_named_and_counted() -> None:
    here = cluster(2)
    found = catalog([(10, ("node0",)), (10, ("gone",)), (10, ("gone",))], ["node0", "node1", "gone", "central0"])
    for policy in POLICIES.values():
        with pytest.raises(PlacementError, match=r"photos/part-00001\.parquet .*2 of 3 shards"):
            policy(job(), found, here)


def test_a_replica_listed_twice_counts_once() -> None:
    here = cluster(2)
    found = catalog([(10, ("node0", "node0", "node1"))], [node.name for node in here.nodes])
    for policy in POLICIES.values():
        plan = policy(job(), found, here)
        check(plan, job(), found, here)
    assert stage(POLICIES["data-local"](job(), found, here), "preprocess").assignments[0].outputs == ("node0", "node1")


def test_more_copies_than_storage_nodes_are_refused_with_both_numbers() -> None:
    here = cluster(2)
    found = catalog([(10, ("node0",))], [node.name for node in here.nodes])
    what = job(preprocess={**BOTH["preprocess"], "output_replication": 3})
    with pytest.raises(PlacementError, match=r"output_replication: 3.* 2 are up"):
        POLICIES["data-local"](what, found, here)


def test_further_copies_follow_the_rack_rule_of_hdfs() -> None:
    here = cluster(6, racks=2)  # racks of node0, 2, 4 and of node1, 3, 5
    found = catalog([(10, ("node0",))] * 5, [node.name for node in here.nodes])
    what = job(preprocess={**BOTH["preprocess"], "output_replication": 3})
    plan = stage(POLICIES["data-local"](what, found, here), "preprocess")
    for assignment in plan.assignments:
        racks = [here.rack_of(name) for name in assignment.outputs]
        assert racks == ["rack0", "rack1", "rack1"]
    others = [name for assignment in plan.assignments for name in assignment.outputs[1:]]
    assert {others.count(name) for name in ("node1", "node3", "node5")} <= {3, 4}


def test_fewer_copies_than_the_input_keep_the_executing_node_first() -> None:
    here = cluster(4)
    found = catalog([(10, ("node0", "node1", "node2"))] * 4, [node.name for node in here.nodes])
    what = job(preprocess={**BOTH["preprocess"], "output_replication": 1})
    for assignment in stage(POLICIES["data-local"](what, found, here), "preprocess").assignments:
        assert assignment.outputs == (assignment.node,)


def test_a_faster_node_gets_more() -> None:
    nodes = [{"name": "node0", "rack": "r", "cores": 3}, {"name": "node1", "rack": "r"}]
    here = Cluster.model_validate({"name": "small", "replication": 1, "nodes": nodes})
    found = catalog([(10, ("node0", "node1"))] * 8, ["node0", "node1"])
    plan = POLICIES["data-local"](job(), found, here)
    assert [a.node for a in stage(plan, "preprocess").assignments].count("node0") == 6
    assert [a.node for a in stage(plan, "train").assignments].count("node0") == 4


def test_an_unknown_policy_is_answered_with_near_names() -> None:
    assert policy_named("central-nas") is POLICIES["central-nas"]
    with pytest.raises(PlacementError, match="data-locl") as refused:
        policy_named("data-locl")
    assert "data-local" in refused.value.hint
    with pytest.raises(PlacementError) as refused:
        policy_named("zzz")
    assert all(name in refused.value.hint for name in POLICIES)


def _broken(plan: Plan, **change: Any) -> Plan:
    import dataclasses

    first, *others = plan.stages
    bad = dataclasses.replace(first.assignments[0], **change)
    return Plan(
        policy=plan.policy,
        stages=(dataclasses.replace(first, assignments=Assignments.of((bad, *first.assignments[1:]))), *others),
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"node": "nobody"}, "no such node"),
        ({"shard": "part-00001.parquet"}, "assigned twice"),
        ({"shard": "part-99999.parquet"}, "not assigned"),
        ({"sources": ()}, "no source"),
        ({"sources": ("node3",)}, "hold no replica"),
        ({"sources": ("node1", "node0")}, "reads another one first"),
        ({"outputs": ("node0", "node0")}, "writes twice"),
        ({"outputs": ("nobody",)}, "not up"),
        ({"outputs": ()}, "goes nowhere"),
        ({"reason": "because"}, "has a reason"),
        ({"node": "node2"}, "has no reason"),
    ],
)
def test_check_names_what_is_wrong_with_a_plan(change: dict[str, Any], message: str) -> None:
    here = cluster(4)
    found = catalog([(10, ("node0", "node1"))] * 2, [node.name for node in here.nodes])
    plan = POLICIES["data-local"](job(), found, here)
    assert plan.stages[0].assignments[0].node == "node0"
    with pytest.raises(PlacementError, match=message):
        check(_broken(plan, **change), job(), found, here)


def test_check_wants_the_stages_of_the_job() -> None:
    here = cluster(4)
    found = catalog([(10, ("node0", "node1"))], [node.name for node in here.nodes])
    plan = POLICIES["data-local"](job(), found, here)
    with pytest.raises(PlacementError, match="has the stages train"):
        check(plan, job(train=BOTH["train"]), found, here)
    with pytest.raises(PlacementError, match="no stage before it makes"):
        check(Plan(policy="x", stages=plan.stages[1:]), job(train=BOTH["train"]), found, here)


@st.composite
def loads(draw: st.DrawFn, equal: bool = False) -> tuple[list[int], list[tuple[int, ...]], list[float]]:
    speeds = [1.0] * 4 if equal else draw(st.lists(st.sampled_from([1.0, 2.0, 4.0]), min_size=1, max_size=4))
    held = st.lists(st.integers(0, len(speeds) - 1), min_size=1, max_size=3, unique=True).map(
        lambda x: tuple(sorted(x))
    )
    holders = draw(st.lists(held, min_size=1, max_size=7))
    sizes = [7] * len(holders) if equal else [draw(st.integers(0, 30)) for _ in holders]
    return sizes, holders, speeds


def _finish(chosen: list[int], rows: list[int], speeds: list[float]) -> float:
    return max(
        sum(rows[s] for s, node in enumerate(chosen) if node == number) / speed for number, speed in enumerate(speeds)
    )


def _best(rows: list[int], holders: list[tuple[int, ...]], speeds: list[float]) -> float:
    return min(_finish(list(choice), rows, speeds) for choice in itertools.product(*holders))


@given(case=loads())
@settings(max_examples=200, deadline=None)
def test_balance_is_within_one_shard_of_the_best_placement(
    case: tuple[list[int], list[tuple[int, ...]], list[float]],
) -> None:
    rows, holders, speeds = case
    chosen = balance(rows, holders, speeds)
    assert all(node in held for node, held in zip(chosen, holders, strict=True))
    best = _best(rows, holders, speeds)
    for number, speed in enumerate(speeds):
        mine = sum(rows[s] for s, node in enumerate(chosen) if node == number)
        assert mine <= best * speed + max(rows) + 1e-6


@given(case=loads(equal=True))
@settings(max_examples=100, deadline=None)
def test_balance_of_equal_shards_on_equal_nodes_is_the_best_there_is(
    case: tuple[list[int], list[tuple[int, ...]], list[float]],
) -> None:
    rows, holders, speeds = case
    assert _finish(balance(rows, holders, speeds), rows, speeds) == _best(rows, holders, speeds)


@given(case=loads())
@settings(max_examples=100, deadline=None)
def test_the_rounded_flow_alone_keeps_the_bound(case: tuple[list[int], list[tuple[int, ...]], list[float]]) -> None:
    rows, holders, speeds = case
    high = _finish([held[0] for held in holders], rows, speeds)
    chosen = _rounded_flow(rows, holders, speeds, 0.0, high)
    best = _best(rows, holders, speeds)
    for number, speed in enumerate(speeds):
        mine = sum(rows[s] for s, node in enumerate(chosen) if node == number)
        assert chosen and mine <= best * speed + max(rows) + 1e-6


@given(st.lists(st.dictionaries(st.integers(0, 4), st.integers(1, 9), min_size=1, max_size=5), max_size=8))
@settings(max_examples=200, deadline=None)
def test_a_forest_keeps_every_sum_and_divides_less_often_than_there_are_bins(rows: list[dict[int, int]]) -> None:
    amounts = {item: dict(places) for item, places in enumerate(rows)}

    def cost(item: int, place: int) -> int:
        return (item * 7 + place * 5) % 3  # any fixed cost will do

    before = sum(cost(i, p) * n for i, places in amounts.items() for p, n in places.items())
    to_forest(amounts, cost)
    assert {i: sum(places.values()) for i, places in amounts.items()} == {
        i: sum(p.values()) for i, p in enumerate(rows)
    }
    for place in range(5):
        assert sum(p.get(place, 0) for p in amounts.values()) == sum(p.get(place, 0) for p in rows)
    assert all(n > 0 for places in amounts.values() for n in places.values())
    assert sum(len(places) - 1 for places in amounts.values()) <= 4
    assert sum(cost(i, p) * n for i, places in amounts.items() for p, n in places.items()) <= before
