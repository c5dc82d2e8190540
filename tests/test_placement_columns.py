"""Plans as columns: what stands in them is what a person would write down row by row."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datalocal.catalog.model import Catalog
from datalocal.errors import PlacementError
from datalocal.estimate.bytes import ROWS_SHOWN, estimate
from datalocal.placement import synthetic
from datalocal.placement.balance import MANY, _greedy, balance, deal
from datalocal.placement.check import check
from datalocal.placement.flow import least_local_makespan
from datalocal.placement.model import Assignment, Assignments, Plan, Tier
from datalocal.placement.problem import Problem
from datalocal.placement.registry import POLICIES
from datalocal.placement.replicas import Holders, Readers, beside, nearest_first
from datalocal.placement.writers import Writers
from datalocal.report.planned import to_json
from datalocal.spec.cluster import Cluster
from datalocal.spec.job import JobSpec
from tests.test_estimate_plans import plans_of, with_rates
from tests.test_placement_policies import cluster, job, scenes

NAMES = tuple(f"n{i}" for i in range(6))


@st.composite
def holders(draw: st.DrawFn) -> tuple[Holders, np.ndarray, np.ndarray, np.ndarray]:
    """Holders of up to 20 shards, a node for each, rows, and racks."""
    held = draw(st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=4, unique=True), min_size=1, max_size=20))
    ends = np.concatenate(([0], np.cumsum([len(nodes) for nodes in held]))).astype(np.int64)
    flat = np.array([node for nodes in held for node in nodes], dtype=np.int32)
    count = st.lists(st.integers(0, 5), min_size=len(held), max_size=len(held))
    rack = draw(st.lists(st.integers(0, 2), min_size=6, max_size=6))
    return (
        Holders(names=NAMES, offsets=ends, nodes=flat),
        np.array(draw(count), dtype=np.int32),
        np.array(draw(count), dtype=np.int64),
        np.array(rack, dtype=np.int32),
    )


@given(made=holders())
@settings(deadline=None)
def test_sources_are_ordered_as_readers_do_it_one_by_one(
    made: tuple[Holders, np.ndarray, np.ndarray, np.ndarray],
) -> None:
    held, reader, rows, rack = made
    one_by_one = Readers({name: int(rack[place]) for place, name in enumerate(NAMES)})
    found = nearest_first(held, reader, rows, rack)
    for shard, nodes in enumerate(held.lists()):
        wanted = one_by_one.order(NAMES[reader[shard]], [NAMES[node] for node in nodes], int(rows[shard]))
        assert tuple(NAMES[node] for node in found.lists()[shard]) == wanted


@given(made=holders(), count=st.sampled_from([None, 1, 2, 3]), keeps=st.booleans())
@settings(deadline=None)
def test_results_go_to_the_maker_then_to_holders_and_are_as_many_as_asked_for(
    made: tuple[Holders, np.ndarray, np.ndarray, np.ndarray], count: int | None, keeps: bool
) -> None:
    held, maker, rows, rack = made
    found = beside(held, maker if keeps else None, count, rows, rack, range(6))
    for shard, (nodes, before) in enumerate(zip(found.lists(), held.lists(), strict=True)):
        assert len(nodes) == len(set(nodes)) == (len(before) if count is None else count)
        if keeps:
            assert nodes[0] == maker[shard]
        rest = nodes[1:] if keeps else nodes
        strangers = [node for node in rest if node not in before]
        assert not strangers or set(before) <= set(nodes), "no stranger while a holder is left out"


def test_what_makers_keep_themselves_counts_before_anybody_is_chosen() -> None:
    """n1 and n2 could take the first shard's copy, and n1 keeps the second shard."""
    held = Holders(names=NAMES, offsets=np.array([0, 2, 5]), nodes=np.array([1, 2, 1, 2, 3], dtype=np.int32))
    found = beside(
        held, np.array([0, 1], dtype=np.int32), 2, np.array([10, 10]), np.arange(6, dtype=np.int32), range(6)
    )
    assert found.lists()[0] == [0, 2]


@given(made=holders(), count=st.integers(1, 4), keeps=st.booleans())
@settings(deadline=None)
def test_where_holders_are_chosen_among_hdfs_rule_decides(
    made: tuple[Holders, np.ndarray, np.ndarray, np.ndarray], count: int, keeps: bool
) -> None:
    """The second copy in another rack than the first, the third in the second's; then where a rack has the fewest."""
    held, maker, rows, rack = made
    for nodes, before in zip(
        beside(held, maker if keeps else None, count, rows, rack, range(6)).lists(), held.lists(), strict=True
    ):
        if set(before) - set(nodes) <= {nodes[0]}:
            continue  # no choice
        for seat in range(1, count):
            taken = [rack[node] for node in nodes[:seat]]
            rules = {
                node: rack[node] != taken[1] if seat == 2 and taken[0] != taken[1] else taken.count(rack[node])
                for node in before
                if node not in nodes[:seat]
            }
            assert rules[nodes[seat]] == min(rules.values())


@given(
    racks=st.lists(st.integers(0, 3), min_size=1, max_size=12),
    asked=st.lists(st.tuples(st.integers(0, 11), st.integers(1, 5), st.integers(0, 9)), min_size=1, max_size=12),
    data=st.data(),
)
@settings(deadline=None)
def test_strangers_are_chosen_by_hdfs_rule_then_by_what_they_got_then_by_name(
    racks: list[int], asked: list[tuple[int, int, int]], data: st.DataObject
) -> None:
    """Against a search through everybody; some nodes are no candidates, some shards have a holder besides their maker."""
    everybody = range(len(racks))
    candidates = data.draw(st.lists(st.sampled_from(everybody), unique=True))
    writers, got = Writers(racks, candidates), Counter[int]()
    for first, count, rows in asked:
        maker, holders = first % len(racks), data.draw(st.lists(st.sampled_from(everybody), max_size=1))
        wanted = [maker]
        if count > 1 and holders and holders[0] != maker:
            wanted.append(holders[0])
        while len(wanted) < count and (left := [node for node in candidates if node not in wanted]):
            taken = [racks[node] for node in wanted]
            second = taken[1] if len(taken) == 2 and taken[0] != taken[1] else None
            wanted.append(
                min(
                    (taken.count(racks[node]) if second is None else racks[node] != second, got[node], node)
                    for node in left
                )[2]
            )
        assert writers.choose(maker, holders, count, rows) == tuple(wanted)
        for node in wanted:
            got[node] += rows


@given(made=holders())
@settings(deadline=None)
def test_one_copy_each_is_chosen_as_writers_do_it_one_by_one(
    made: tuple[Holders, np.ndarray, np.ndarray, np.ndarray],
) -> None:
    held, _, rows, rack = made
    found = beside(held, None, 1, rows, rack, range(6)).lists()
    forced = Counter[int]()
    for nodes, size in zip(held.lists(), rows.tolist(), strict=True):
        forced[nodes[0]] += size if len(nodes) == 1 else 0
    writers = Writers(rack.tolist(), range(6), forced)
    for shard, nodes in enumerate(held.lists()):
        assert len(nodes) == 1 or tuple(found[shard]) == writers.choose(None, nodes, 1, int(rows[shard]))


def test_of_the_holders_the_one_with_the_least_is_left_with_the_result() -> None:
    """Three shards of one maker that holds none of them: their two holders take turns with the second copy."""
    held = Holders(names=NAMES, offsets=np.array([0, 2, 4, 6]), nodes=np.array([1, 2, 1, 2, 1, 2], dtype=np.int32))
    rack = np.array([0, 1, 2, 3, 4, 5], dtype=np.int32)
    found = beside(held, np.zeros(3, dtype=np.int32), 2, np.array([10, 10, 10]), rack, range(6))
    assert Counter(node for nodes in found.lists() for node in nodes[1:]) == {1: 2, 2: 1}
    writers = Writers({name: int(rack[place]) for place, name in enumerate(NAMES)}, NAMES, {"n1": 5})
    assert writers.choose("n0", ("n1", "n2"), 2, 1) == ("n0", "n2")


@given(scene=scenes(), data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_plan_is_its_rows_packed_and_unpacked(scene: tuple[JobSpec, Catalog, Cluster], data: st.DataObject) -> None:
    what, found, here = scene
    name = data.draw(st.sampled_from(["data-local", "random", "central-nas", "central-staged"]))
    plan = POLICIES[name](what, found, here)
    for stage in plan.stages:
        rows = tuple(stage.assignments)
        assert Assignments.of(rows) == stage.assignments == rows
        assert hash(stage.assignments) == hash(Assignments.of(rows))
        assert rows[-1] == stage.assignments[-1] and stage.assignments[:2] == rows[:2]
        assert stage.nodes == tuple(sorted({row.node for row in rows}))
        assert stage.assignments.local.tolist() == [row.local for row in rows]
    assert Plan.from_json(plan.to_json()) == plan
    with pytest.raises(IndexError):
        plan.stages[0].assignments[len(found)]


def _spoiled(row: Assignment, **changes: object) -> Assignment:
    return dataclasses.replace(row, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"node": "nobody"}, "no such node is up"),
        ({"sources": ()}, "no source to read from"),
        ({"sources": ("central0",)}, "hold no replica"),
        ({"outputs": ("node1", "node1")}, "writes twice"),
        ({"outputs": ("node1", "gone")}, "are not up"),
        ({"outputs": ()}, "its result goes nowhere"),
        ({"reason": "just so"}, "local and has a reason"),
    ],
)
def test_one_bad_row_among_many_is_found_and_named(changes: dict[str, object], words: str) -> None:
    here, found, what = _world(shards=500, nodes=8)
    plan = POLICIES["data-local"](what, found, here)
    check(plan, what, found, here)
    (stage,) = plan.stages
    rows = list(stage.assignments)
    rows[321] = _spoiled(rows[321], **changes)
    broken = dataclasses.replace(plan, stages=(dataclasses.replace(stage, assignments=Assignments.of(rows)),))
    with pytest.raises(PlacementError, match=words) as caught:
        check(broken, what, found, here)
    assert found.shards[321] in str(caught.value)
    shuffled = dataclasses.replace(stage, assignments=Assignments.of(reversed(stage.assignments)))
    check(dataclasses.replace(plan, stages=(shuffled,)), what, found, here)


def _world(shards: int, nodes: int) -> tuple[Cluster, Catalog, JobSpec]:
    """HDFS's rule on storage nodes, and a central node."""
    here = cluster(nodes, 1, racks=max(2, nodes // 40))
    laid = synthetic.hdfs(shards, nodes, seed=0)
    rows, sizes = np.full(shards, 10, dtype=np.int64), np.full(shards, 1000, dtype=np.int64)
    storage = tuple(node.name for node in here.storage_nodes)
    found = Catalog(
        dataset="photos",
        nodes=storage,
        shards=tuple(f"part-{i:07d}.parquet" for i in range(shards)),
        shard_bytes=sizes,
        shard_rows=rows,
        replica_offsets=laid.replica_offsets,
        replica_nodes=laid.replica_nodes.astype(np.int64),
        group_offsets=np.arange(shards + 1, dtype=np.int64),
        group_rows=rows,
        group_bytes=sizes,
    )
    return here, found, job(preprocess={"transform": "m:f", "output": "small"})


@given(scene=scenes(), data=st.data())
@settings(max_examples=40, deadline=None)
def test_estimated_bytes_are_the_sums_over_the_rows_of_the_plan(
    scene: tuple[JobSpec, Catalog, Cluster], data: st.DataObject
) -> None:
    what, found, here = scene
    name = data.draw(st.sampled_from(["data-local", "random", "central-nas", "central-staged"]))
    plan = POLICIES[name](what, found, here)
    told = estimate(plan, what, found, here, output_share=1.0)
    epochs = what.train.epochs if what.train is not None else 1
    for stage in plan.stages:
        wanted: Counter[tuple[str, str]] = Counter()
        for row in stage.assignments:
            times = epochs if stage.kind == "train" else 1
            wanted[row.sources[0], row.node] += times * int(found.shard_bytes[found.index(row.shard)])
        rows = [row for row in told.rows if row.stage == stage.name and row.class_ in ("input", "staging")]
        assert {(row.source, row.destination): row.bytes for row in rows} == wanted
        assert all(row.tier == Tier.between(here, row.source, row.destination) for row in rows)


def test_a_plan_of_many_pairs_of_nodes_leaves_the_rows_out_of_its_json_and_keeps_the_sums() -> None:
    here, found, what = _world(shards=30_000, nodes=300)
    plans = plans_of(what, found, with_rates(here), "random", "data-local", output_share=0.5)
    content = to_json(plans, what, found, here)
    scattered, _ = content["arms"]
    assert sum(len(flows.source) for flows in plans.arms[0].estimate.flows) > ROWS_SHOWN
    assert scattered["estimate"]["rows"] is None
    assert sum(row["bytes"] for row in scattered["bytes"] if row["class"] == "input") == found.total_bytes
    ends = [0, *np.cumsum([node["shards"] for node in scattered["stages"][0]["nodes"]]).tolist()]
    assert ends[-1] == len(found) and all(a < b for a, b in pairwise(ends))


def test_a_plan_of_a_hundred_thousand_shards_on_a_thousand_nodes_takes_seconds() -> None:
    """Nothing in it grows with shards times nodes: before plans were columns this took minutes."""
    here, found, what = _world(shards=100_000, nodes=1000)
    began = time.process_time()
    plans = plans_of(what, found, with_rates(here), "data-local", "optimal-bytes", "central-nas", output_share=0.5)
    to_json(plans, what, found, here)
    assert time.process_time() - began < 15
    assert [arm.locality.local_share for arm in plans.arms] == [1.0, 1.0, 0.0]


@pytest.mark.parametrize("layout", [synthetic.hdfs, synthetic.ring])
def test_very_many_shards_are_as_even_as_whole_shards_of_one_size_could_be(layout: Callable[..., Problem]) -> None:
    """30,000 shards of 900 to 1,100 rows: the busiest node is within a shard or two of the exact optimum for equal shards."""
    problem = layout(MANY * 3 // 2, 100, seed=3)
    ends, flat = problem.replica_offsets.tolist(), problem.replica_nodes.tolist()
    held = [flat[begin:end] for begin, end in pairwise(ends)]
    speeds = [1.0 + node % 2 for node in range(problem.nodes)]
    chosen = balance(problem.shard_rows.tolist(), held, speeds)
    assert all(node in nodes for node, nodes in zip(chosen, held, strict=True))
    took = np.bincount(chosen, weights=problem.shard_rows, minlength=problem.nodes) / np.array(speeds)
    two_speeds = dataclasses.replace(problem, slots=np.ones(problem.nodes, dtype=np.int64), speed=np.array(speeds))
    optimum = least_local_makespan(two_speeds) * problem.shard_rows.mean()
    assert took.max() < 1.03 * optimum
    greedy, _ = _greedy(problem.shard_rows.tolist(), held, speeds)
    alone = np.bincount(greedy, weights=problem.shard_rows, minlength=problem.nodes) / np.array(speeds)
    assert took.max() <= alone.max()
    assert layout is synthetic.hdfs or took.max() < alone.max(), "greedy alone is not enough on a ring"


@given(
    rows=st.lists(st.integers(1, 50), min_size=1, max_size=200),
    speeds=st.lists(st.sampled_from([0.5, 1.0, 2.0, 3.0]), min_size=1, max_size=6),
)
@settings(deadline=None)
def test_dealt_shards_keep_every_node_within_its_share(rows: list[int], speeds: list[float]) -> None:
    """No node would be done sooner with one shard more than the last one is: nothing is gained by moving one."""
    chosen = deal(np.array(rows), speeds)
    count = np.bincount(chosen, minlength=len(speeds))
    weight = np.array(speeds)
    assert count.sum() == len(rows)
    assert (count / weight).max() <= ((count + 1) / weight).min() + 1e-9
    last = (np.bincount(chosen, weights=rows, minlength=len(speeds)) / weight).max()
    assert last <= (len(rows) + len(speeds)) / weight.sum() * max(rows) + 1e-9
