"""Plans side by side: the contract that scripts rely on, and the worked example from beginning to end."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

from datalocal.catalog.model import Catalog
from datalocal.estimate.bytes import Known
from datalocal.estimate.rates import Overhead, Rates, declared
from datalocal.estimate.steps import read_ahead_seconds
from datalocal.placement.registry import POLICIES
from datalocal.report.planned import Plans, assignment_columns, to_json, weigh
from datalocal.report.schema import PLAN, schema, validate
from datalocal.report.verdict import choice_of
from datalocal.spec.cluster import Cluster
from datalocal.spec.job import JobSpec
from tests.test_estimate_crossover import RESNET50, imagenet
from tests.test_placement_policies import BOTH, catalog, cluster, job, scenes

NAMES = ("data-local", "random", "reduce-then-ship", "central-nas", "central-staged")
SPEEDS = {
    "disk_bytes_per_second": 1e8,
    "link_bytes_per_second": 1e9,
    "preprocess_images_per_second": 200.0,
    "train_images_per_second": 100.0,
}


def with_rates(here: Cluster, **changes: Any) -> Cluster:
    content = here.model_dump() | {"shared_host": False, "rates": SPEEDS} | changes
    return Cluster.model_validate(content)


def plans_of(
    what: JobSpec, found: Catalog, here: Cluster, *names: str, rates: Rates | None = None, **known: Any
) -> Plans:
    ticks = itertools.count()
    chosen = {name: POLICIES[name] for name in names or ("data-local", "central-nas", "central-staged")}
    return weigh(chosen, what, found, here, known=Known(**known), rates=rates, clock=lambda: float(next(ticks)))


def test_resnet50_on_imagenet_is_worked_out_by_plan_to_three_digits() -> None:
    """8 nodes, 90 epochs, 256 images per node and step: 80.6 TB of gradients, 13.2 TB of images, 0.147 TB where they are kept."""
    here, what = cluster(8), job(train={"model": "m:net", "epochs": 90, "batch": 2048})
    content = to_json(plans_of(what, imagenet(8), here, gradient_bytes=RESNET50), what, imagenet(8), here)
    validate(content, PLAN)
    arms = {arm["policy"]: arm for arm in content["arms"]}
    off = {name: sum(row["bytes"] for row in arm["bytes"] if row["tier"] != "node_local") for name, arm in arms.items()}
    assert off["data-local"] == pytest.approx(80.6e12, rel=5e-4)
    assert off["central-nas"] == pytest.approx(13.2e12, rel=2e-3)
    assert off["central-staged"] == pytest.approx(0.147e12, rel=2e-3)
    every, once = arms["data-local"]["crossovers"]
    assert 1 / every["locality_number"] == pytest.approx(6.1, abs=0.05)
    assert 1 / once["locality_number"] == pytest.approx(549, abs=0.5)
    assert every["break_even_period"] == 7
    assert content["verdict"]["choice"] == "central"
    assert arms["data-local"]["local_share"] == 1 and arms["central-nas"]["local_share"] == 0
    assert arms["central-nas"]["local_share_bound"] == 1


@given(scene=scenes())
@settings(max_examples=25, deadline=None)
def test_every_plan_keeps_the_contract_and_no_arm_is_better_than_its_bound(
    scene: tuple[JobSpec, Catalog, Cluster],
) -> None:
    what, found, here = scene
    here = with_rates(here)
    training = {key: np.ones(int(rows), dtype=bool) for key, rows in zip(found.shards, found.shard_rows, strict=True)}
    for rates in (None, declared(here, source="here")):
        known = {"gradient_bytes": 4, "output_share": 0.5, "checkpoint_bytes": 8, "training": training}
        plans = plans_of(what, found, here, *NAMES, rates=rates, **known)
        content = to_json(plans, what, found, here)
        validate(content, PLAN)
        assert set(content["refused"]) == ({"reduce-then-ship"} if what.preprocess is None else set())
        for arm in content["arms"]:
            assert arm["local_share"] <= arm["local_share_bound"] + 1e-12
            assert arm["gap"] >= 0
            assert (arm["seconds"] is None) == (rates is None)
            assert arm["plan_seconds"] == 1
        columns = assignment_columns([arm.plan for arm in plans.arms])
        stages = sum(len(arm.plan.stages) for arm in plans.arms)
        assert {len(values) for values in columns.values()} == {stages * len(found)}


def test_without_rates_there_are_no_seconds_and_no_joules_but_reasons() -> None:
    here, what = cluster(4).model_copy(update={"power": None}), job(train={"model": "m:net"})
    content = to_json(plans_of(what, imagenet(4), here, gradient_bytes=4), what, imagenet(4), here)
    for arm in content["arms"]:
        assert arm["seconds"] is None and "--calibrate" in arm["seconds_reason"]
        host = next(row for row in arm["joules"] if row["component"] == "host")
        assert host["joules"] is None and host["origin"] == "missing" and "power" in host["reason"]


def test_a_node_of_a_gang_counts_once_however_many_slots_it_has() -> None:
    """8 shards on 4 nodes: a rank each works through two of them, where independent tasks would have taken both slots."""
    plain = cluster(4)
    here = with_rates(plain, nodes=[node.model_dump() | {"slots": 2} for node in plain.nodes])
    found = catalog([(100, (f"node{i % 4}",)) for i in range(8)], [node.name for node in here.nodes])
    for what, makespan in ((job(train={"model": "m:net"}), 2.0), (job(preprocess=BOTH["preprocess"]), 1.0)):
        (arm,) = to_json(plans_of(what, found, here, "data-local"), what, found, here)["arms"]
        assert arm["makespan"] == pytest.approx(makespan)


def test_what_a_plan_takes_for_granted_is_said() -> None:
    here = cluster(4)
    what = job(train={"model": "m:net", "validation": {"column": "split", "value": "val"}})
    told = " ".join(plans_of(what, imagenet(4), here, gradient_bytes=4).verdict["because"])
    assert "Every row is counted as one that trains" in told
    assert "Checkpoints are not counted" in told
    assert "`control`" in told


def test_a_number_that_is_missing_without_a_reason_breaks_the_contract() -> None:
    here, what = cluster(2), job(train={"model": "m:net"})
    content = to_json(plans_of(what, imagenet(2), here), what, imagenet(2), here)
    validate(content, PLAN)
    gradients = next(row for row in content["arms"][0]["bytes"] if row["class"] == "gradients")
    assert gradients["bytes"] is None and gradients["reason"]
    del gradients["reason"]
    with pytest.raises(ValueError, match="bytes"):
        validate(content, PLAN)
    assert schema(PLAN)["$id"] == "datalocal.plan/1"


# What the cost model says, worked out by hand


def seconds(plans: Plans, policy: str, stage: str) -> Any:
    arm = next(arm for arm in plans.arms if arm.plan.policy == policy)
    return next(each for each in arm.cost.stages if each.stage == stage)


def test_a_node_that_only_computes_takes_its_images_over_its_rate() -> None:
    """Each of 4 nodes resizes 2 shards of 100 images at 200 a second. A shard of one row group is read before it is worked on."""
    here = with_rates(cluster(4))
    found = catalog([(100, (f"node{i % 4}",)) for i in range(8)], [node.name for node in here.nodes])
    what = job(preprocess=BOTH["preprocess"])
    plans = plans_of(what, found, here, "data-local", rates=declared(here, source="x"), output_share=0.5)
    assert seconds(plans, "data-local", "preprocess").seconds == pytest.approx(200_000 / 1e8 + 1.0 + 100_000 / 1e8)
    assert seconds(plans, "data-local", "preprocess").bottleneck.startswith("compute")


def test_a_central_node_is_bound_by_its_link_where_it_computes_faster_than_that() -> None:
    here = with_rates(cluster(4), rates=SPEEDS | {"preprocess_images_per_second": 1e9, "link_bytes_per_second": 1e5})
    found = catalog([(100, (f"node{i % 4}",)) for i in range(8)], [node.name for node in here.nodes])
    what = job(preprocess=BOTH["preprocess"])
    plans = plans_of(what, found, here, "central-nas", rates=declared(here, source="x"), output_share=0.5)
    found_stage = seconds(plans, "central-nas", "preprocess")
    assert found_stage.seconds == pytest.approx(800_000 / 1e5 + 400_000 / 1e5, rel=1e-6)
    assert found_stage.bottleneck == "compute on central0"


def test_nodes_of_one_host_share_its_cores() -> None:
    """Four nodes with a core each take twice as long on a host with two."""
    apart = with_rates(cluster(4))
    found = catalog([(100, (f"node{i % 4}",)) for i in range(8)], [node.name for node in apart.nodes])
    what = job(preprocess=BOTH["preprocess"])
    known: dict[str, Any] = {"output_share": 1e-9}
    together = with_rates(cluster(4), shared_host=True)
    own = plans_of(what, found, apart, "data-local", rates=declared(apart, source="x"), **known)
    shared = plans_of(
        what, found, together, "data-local", rates=declared(together, source="x", machine_cores=2), **known
    )
    slow, fast = (seconds(plans, "data-local", "preprocess").seconds for plans in (shared, own))
    assert slow == pytest.approx(2 * fast, rel=0.01)
    assert "host" in seconds(shared, "data-local", "preprocess").bottleneck


def test_a_storage_node_that_serves_others_is_slower_by_what_serving_takes() -> None:
    """`random` makes nodes read from each other: with a dear wire the model says how much longer that takes."""
    here = with_rates(cluster(4), rates=SPEEDS | {"serve_seconds_per_byte": 1e-5})
    found = catalog([(100, ("node0",)) for _ in range(8)], [node.name for node in here.nodes])
    what = job(preprocess=BOTH["preprocess"])
    plans = plans_of(what, found, here, "random", rates=declared(here, source="x"), output_share=1e-9)
    stage = seconds(plans, "random", "preprocess")
    own = [a for a in plans.arms[0].plan.stages[0].assignments if a.node == "node0"]
    away = (8 - len(own)) * 100_000 * 1e-5
    assert stage.serving_seconds > 0
    assert stage.seconds == pytest.approx(len(own) * 0.5 + away, rel=0.01)


def test_a_step_is_computing_and_synchronising_as_far_as_they_do_not_hide() -> None:
    here = with_rates(cluster(4))
    what = job(train={"model": "m:net", "epochs": 3, "batch": 40})
    found = catalog([(100, (f"node{i % 4}",)) for i in range(8)], [node.name for node in here.nodes])
    rates = declared(here, source="x")
    assert rates is not None
    size = 10**8
    computing, sync = 10 / 100.0, 2 * 3 / 4 * size / 1e9
    for gamma, step in ((1.0, computing + sync), (2.0, (computing**2 + sync**2) ** 0.5)):
        using = Rates(**{name: getattr(rates, name) for name in Rates.__dataclass_fields__} | {"gamma": gamma})
        stage = seconds(
            plans_of(what, found, here, "data-local", rates=using, gradient_bytes=size), "data-local", "train"
        )
        assert stage.step_seconds == pytest.approx(step)
        assert stage.seconds == pytest.approx(3 * 20 * step)


def eight_shards(here: Cluster) -> tuple[Catalog, dict[str, Any]]:
    """Two shards of 100 images on each of four nodes; of each 80 train and 20 validate."""
    found = catalog([(100, (f"node{i % 4}",)) for i in range(8)], [node.name for node in here.nodes])
    return found, {key: np.arange(100) < 80 for key in found.shards}


def test_an_epoch_is_steps_and_validation_and_checkpoints_unless_reading_takes_longer() -> None:
    """Per node and epoch 160 images train and 40 validate at 100 a second; 16 steps, a checkpoint of 0.5 s after each 8."""
    what = job(train={"model": "m:net", "epochs": 3, "batch": 40, "checkpoint_every_steps": 8})
    for disk, waits in ((1e8, "compute"), (1e3, "reading")):
        here = with_rates(cluster(4), rates=SPEEDS | {"disk_bytes_per_second": disk})
        found, training = eight_shards(here)
        rates = declared(here, source="x")
        assert rates is not None
        plans = plans_of(
            what,
            found,
            here,
            "data-local",
            rates=replace(rates, checkpoint_seconds=0.5),
            gradient_bytes=0,
            training=training,
        )
        stage = seconds(plans, "data-local", "train")
        read = sum(row.bytes or 0 for row in plans.arms[0].estimate.rows if row.destination == "node0")
        assert stage.bottleneck == waits
        steps = max(1.6, (read / 3 - 200) / disk)
        checking = read_ahead_seconds(200 / disk, 0.4, 2)  # two row groups of 100 bytes, which hold rows of both kinds
        assert stage.seconds == pytest.approx(3 * (steps + checking + 1.0))


def test_an_arm_on_nodes_that_trained_before_starts_sooner() -> None:
    here = with_rates(cluster(4))
    found, training = eight_shards(here)
    rates = declared(here, source="x")
    assert rates is not None
    cold = replace(rates, cold=Overhead(fixed_seconds=7.0), gang=Overhead(fixed_seconds=2.0))
    arms = ("random", "data-local", "central-nas")
    plans = plans_of(job(train={"model": "m:net"}), found, here, *arms, rates=cold, gradient_bytes=0, training=training)
    assert [seconds(plans, name, "train").start_seconds for name in arms] == [9.0, 2.0, 9.0]


def test_staging_takes_as_long_as_copies_are_written() -> None:
    """800 kB come over a fast link to the one central node, whose disk takes 100 kB of copies a second."""
    here = with_rates(cluster(4))
    found, _ = eight_shards(here)
    rates = declared(here, source="x")
    assert rates is not None
    slow = replace(rates.nodes["central0"], copy_bytes_per_second=1e5)
    using = replace(rates, nodes={**rates.nodes, "central0": slow})
    plans = plans_of(job(train={"model": "m:net"}), found, here, "central-staged", rates=using, gradient_bytes=0)
    assert seconds(plans, "central-staged", "staging").seconds == pytest.approx(8.0, rel=0.01)


@pytest.mark.parametrize(
    ("policy", "choice"),
    [("san", "central"), ("central-cached", "central"), ("reduce-then-ship", "reduce-and-ship"), ("quincy", "local")],
)
def test_every_policy_stands_for_a_way_of_working(policy: str, choice: str) -> None:
    assert choice_of(policy) == choice


def test_a_central_node_of_equal_gpus_is_as_fast_as_all_storage_nodes_together() -> None:
    here = with_rates(cluster(8))
    what = job(train={"model": "m:net", "epochs": 2, "batch": 80})
    found = catalog([(100, (f"node{i % 8}",)) for i in range(8)], [node.name for node in here.nodes])
    plans = plans_of(what, found, here, rates=declared(here, source="x"), gradient_bytes=10)
    arms = {arm.plan.policy: arm for arm in plans.arms}
    assert arms["central-staged"].cost.seconds is not None
    assert arms["central-staged"].equal_seconds["GPUs"] < arms["central-staged"].cost.seconds / 5
    local = arms["data-local"].cost.seconds
    assert local == pytest.approx(2 * 10 * 10 / 100, rel=0.01)
    nas = arms["central-nas"].equal_seconds["GPUs"]
    assert nas == pytest.approx(local, rel=0.01)
    assert any("at equal GPUs" in told for told in plans.verdict["because"])


def test_equal_money_and_power_pay_for_as_many_central_nodes_as_the_local_ones_cost() -> None:
    """8 storage nodes at 1 an hour, and at 4 a central node as fast as 4 of them: for 8 there are two of it, as fast as all the
    storage nodes; for the watts of 8 hosts there are eight of it."""
    plain = cluster(8)
    nodes = [
        node.model_dump()
        | {"price_per_hour": 4.0 if node.role == "compute" else 1.0}
        | ({"rates": {"train_images_per_second": 400.0}} if node.role == "compute" else {})
        for node in plain.nodes
    ]
    here = with_rates(plain, nodes=nodes)
    what = job(train={"model": "m:net", "epochs": 2, "batch": 80})
    found = catalog([(100, (f"node{i % 8}",)) for i in range(8)], [node.name for node in here.nodes])
    plans = plans_of(what, found, here, rates=declared(here, source="x"), gradient_bytes=10)
    arms = {arm.plan.policy: arm for arm in plans.arms}
    local, equal = arms["data-local"].cost.seconds, arms["central-nas"].equal_seconds
    assert local is not None
    assert equal["money"] == pytest.approx(local, rel=0.01) == equal["GPUs"]
    assert equal["power"] == pytest.approx(local / 4, rel=0.01)
    (told,) = [line for line in plans.verdict["because"] if "for the same power" in line]
    assert "would be another" in told and "central-" in told
    without = [{**node, "price_per_hour": None} if node["name"] == "node3" else node for node in nodes]
    unpriced = plans_of(
        what, found, with_rates(plain, nodes=without, power=None), rates=declared(here, source="x"), gradient_bytes=10
    )
    assert all(set(arm.equal_seconds) <= {"GPUs"} for arm in unpriced.arms), "one price that is not known is too many"


def test_joules_are_idle_and_busy_watts_of_the_hosts_that_take_part() -> None:
    here = with_rates(cluster(4), power={"idle_watts": 100, "busy_watts": 300})
    found = catalog([(100, (f"node{i % 4}",)) for i in range(8)], [node.name for node in here.nodes])
    what = job(preprocess=BOTH["preprocess"])
    plans = plans_of(what, found, here, "data-local", rates=declared(here, source="x"), output_share=1e-9)
    rows = {row["component"]: row for row in plans.arms[0].cost.joules}
    assert rows["host idle"]["joules"] == pytest.approx(4 * 100 * 1.0, rel=0.01)
    assert rows["host busy"]["joules"] == pytest.approx(4 * 200 * 1.0, rel=0.01)
    assert {row["origin"] for row in rows.values()} == {"assumed", "modelled.literature"}


def test_processes_of_one_host_start_in_turns() -> None:
    start = Overhead(process_core_seconds=2.0, fixed_seconds=1.0)
    assert start.seconds(1, 2) == start.seconds(2, 2) == 3.0
    assert start.seconds(8, 2) == 9.0
