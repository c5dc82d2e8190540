"""Rules at work in a run: the same rule under a clock that the test moves, and for real in the in-process executor."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from datalocal.errors import PlacementError
from datalocal.execution.arm import Arm
from datalocal.execution.dispatch import GiveUp, Replaced, Start
from datalocal.execution.dispatching import dispatch_of
from datalocal.execution.online import OnlineDispatch
from datalocal.placement.arrays import from_catalog
from datalocal.placement.model import Assignment, Plan
from datalocal.placement.registry import POLICIES
from datalocal.placement.repair import Putting
from datalocal.placement.rules import RULES, DaskDefault, DaskReplicas, Rule, SparkDelay, YarnDelay
from tests import worlds
from tests.test_placement_policies import catalog, cluster, job, stage
from tests.test_runner_inline import arm, run


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def dispatch(
    rule: Rule, clock: Clock, attempts: int = 3, holders: tuple[str, ...] = ("node0", "node1")
) -> OnlineDispatch:
    """Six shards, all on node0 and node1 of four nodes; node0 and node2 share a rack, as node1 and node3 do."""
    here = cluster(4, compute=1)
    found = catalog([(10, holders)] * 6, [node.name for node in here.nodes])
    plan = POLICIES["data-local"](job(), found, here)
    putting = Putting(stage(plan, "preprocess"), found, here, [node.name for node in here.nodes])
    return OnlineDispatch(
        rule=rule,
        problem=from_catalog(found, here),
        shards=list(found.shards),
        putting=lambda: putting.on,
        max_attempts=attempts,
        clock=clock,
    )


def started(instructions: list[Any]) -> list[Assignment]:
    return [each.assignment for each in instructions if isinstance(each, Start)]


def test_what_waits_is_started_by_the_clock_with_sources_outputs_and_the_reason() -> None:
    clock = Clock()
    book = dispatch(SparkDelay(), clock)
    assert [(each.node, each.reason) for each in started(book.begin())] == [("node0", ""), ("node1", "")]
    clock.now_s = 2.99
    assert book.tick() == []
    clock.now_s = 3.0
    near = started(book.tick())
    assert [each.node for each in near] == ["node2", "node3"]
    assert {each.reason for each in near} == {"its holders were busy for 3 s"}
    assert near[0].sources == ("node0", "node1") and near[1].sources == ("node1", "node0")
    assert near[0].outputs[0] == "node2" and len(near[0].outputs) == 2
    assert not book.finished
    for each in started(book.done(near[0].shard)):
        assert each.node == "node2"


def test_what_no_working_node_holds_is_not_blamed_on_the_rule() -> None:
    for rule in (DaskReplicas(), DaskDefault()):
        told = {each.reason for each in started(dispatch(rule, Clock(), holders=("central0",)).begin())}
        assert told == {"the nodes that hold it have no slot to work in"}


def test_an_idle_node_is_an_opportunity_with_every_heartbeat_and_not_with_every_look_at_the_clock() -> None:
    clock = Clock()
    book = dispatch(YarnDelay(misses=3), clock)
    assert len(started(book.begin())) == 2
    clock.now_s = 0.9
    assert [book.tick() for _ in range(50)] == [[]] * 50
    clock.now_s = 1.0
    (near,) = started(book.tick())
    assert near.reason.startswith("its holders were busy while 4 offers")


def test_a_failure_and_a_lost_node_are_told_and_in_the_end_given_up() -> None:
    clock = Clock()
    book = dispatch(DaskReplicas(), clock, attempts=2)
    first, second = started(book.begin())
    assert (first.node, second.node) == ("node0", "node1")
    (other,) = started(book.failed(first.shard, "disk on fire"))
    assert other.node == "node0" and other.shard != first.shard, "the other holder is busy, so the first one goes on"
    (told, again) = book.done(second.shard)
    assert isinstance(told, Replaced) and (told.from_node, told.to_node) == ("node0", "node1")
    assert told.cause == "disk on fire" and isinstance(again, Start) and again.attempt == 2
    (gone,) = book.failed(first.shard, "disk on fire")
    assert isinstance(gone, GiveUp) and "attempt 2 of 2" in gone.cause
    assert started(book.lost("node1")) == [], "node0 has its one task"
    assert book.lost("node1") == []


def test_a_shard_whose_last_replica_went_before_the_run_was_resumed_is_told_by_its_name() -> None:
    here = cluster(4, compute=1)
    whole = catalog([(10, ("node0", "node1"))] * 6, [node.name for node in here.nodes])
    plan = stage(POLICIES["dask-replicas"](job(), whole, here), "preprocess")
    book = Arm(
        policy="dask-replicas",
        job=job(),
        cluster=here,
        executor=cast(Any, SimpleNamespace(facts=lambda: dict.fromkeys(node.name for node in here.nodes))),
        wiring=cast(Any, None),
        record=cast(Any, None),
        open_store=cast(Any, None),
        cancelled=threading.Event(),
    )
    left = whole.select(range(1, 6))
    assert started(dispatch_of(book, plan, plan.assignments[1:], left).begin()), "the one that is gone was done before"
    with pytest.raises(PlacementError, match=f"{plan.assignments[0].shard} has no replica"):
        dispatch_of(book, plan, plan.assignments, left)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """One run of the four rules, preprocess only, over 60 pictures on 4 nodes."""
    base = tmp_path_factory.mktemp("rules")
    here = worlds.cluster_file(base)
    worlds.fill(base / "home", here, worlds.image_folder(base / "images", count=60, side=160))
    # Tasks of one process run one after the other, so a wait of 3 s would be waited for by all.
    what = worlds.job_file(base / "job", train=False, policy_options={"spark_wait_seconds": 0.05})
    code, found = run(base / "home", what, here, *RULES, run_id="rules")
    assert code == 0, found
    return found, base / "home" / "rules"


@pytest.mark.parametrize("policy", list(RULES))
def test_every_rule_runs_for_real_and_every_image_once(report: tuple[dict[str, Any], Path], policy: str) -> None:
    (only,) = arm(report[0], policy)["stages"]
    assert only["images"] == 60
    assert only["tasks"]["total"] > 4
    plan = (report[1] / "arms" / policy / "plan.json").read_text()
    assert Plan.from_json(json.loads(plan)).stages[0].rule is not None


def test_strict_replicas_are_all_local_and_what_is_not_says_why(report: tuple[dict[str, Any], Path]) -> None:
    strict = arm(report[0], "dask-replicas")
    assert strict["not_local"] == []
    assert strict["stages"][0]["tasks"]["node_local"] == strict["stages"][0]["tasks"]["total"]
    blind = arm(report[0], "dask-default")
    assert {row["reason"] for row in blind["not_local"]} == {"dask does not see where replicas lie"}
    for row in arm(report[0], "spark-delay")["not_local"]:
        assert row["reason"].startswith("its holders were busy for 0.05 s")
