"""Class quotas: nearer to the whole's labels and never farther, all of it local, in as many steps; and a bound that holds."""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from datalocal.catalog.model import Catalog, ShardEntry, build_catalog
from datalocal.catalog.probe import probe
from datalocal.errors import PlacementError
from datalocal.estimate.bytes import estimate
from datalocal.launch import embedded
from datalocal.placement.balance import balance
from datalocal.placement.check import check
from datalocal.placement.division import able_ranks, plan_epoch
from datalocal.placement.epochs import Schedule, plan_epochs, slots_of
from datalocal.placement.mixing import label_distance
from datalocal.placement.model import Assignment
from datalocal.placement.quota import LOAD_WEIGHT, Quota, expected_labels, label_mixes, mean_distance, quota_of, spread
from datalocal.placement.registry import POLICIES
from datalocal.placement.shuffles import LOCAL, Shuffle, shuffle_named
from datalocal.report.labels import in_words as foretold_in_words
from datalocal.report.labels import label_distance as foretold
from datalocal.report.mixture import in_words, mixing_figures
from datalocal.spec.cluster import load_cluster
from datalocal.spec.job import load_job
from datalocal.storage.client import Store
from datalocal.storage.counting import ByteCounter
from datalocal.storage.server import StoreServer
from datalocal.tasks.select import rows_that_train
from tests import worlds
from tests.test_placement_policies import catalog, cluster, job
from tests.test_placement_rotation import away
from tests.test_placement_rotation import spread as laid_out
from tests.test_runner_inline import arm, run

Labelled: TypeAlias = tuple[Catalog, list[Assignment]]


def labelled(held: list[tuple[int, ...]], nodes: int, counts: list[list[int]], groups: int) -> Labelled:
    """Shards with `counts` of each label, in row groups of about the same size, each at one of its holders."""
    names = [f"node{number:04d}" for number in range(nodes)]
    rows = [sum(each) for each in counts]
    home = balance(rows, [sorted(on) for on in held], [1.0] * nodes)
    entries, assignments = [], []
    for i, on in enumerate(held):
        sizes = tuple(len(part) for part in np.array_split(np.arange(rows[i]), groups) if len(part))
        replicas = tuple(names[n] for n in on)
        entry = ShardEntry(
            key=f"s{i:05d}",
            bytes=rows[i],
            replicas=replicas,
            group_rows=sizes,
            group_bytes=sizes,
            label_counts=tuple(counts[i]),
        )
        entries.append(entry)
        here = names[home[i]]
        others = tuple(name for name in replicas if name != here)
        assignments.append(Assignment(shard=entry.key, node=here, sources=(here, *others)))
    labels = [f"class {number}" for number in range(len(counts[0]))]
    return build_catalog(dataset="d", nodes=names, entries=entries, labels=labels), assignments


def of_one_class(nodes: int, shards: int, groups: int, classes: int, replicas: int = 3, rows: int = 100) -> Labelled:
    counts = [[rows * groups * (i * classes // shards == label) for label in range(classes)] for i in range(shards)]
    return labelled(laid_out(nodes, shards, replicas, seed=1), nodes, counts, groups)


def scheduled(
    case: Labelled, shuffle: Shuffle = LOCAL, *, quota: bool = True, ranks: int = 1, batch: int = 0
) -> Schedule:
    found, assignments = case
    nodes = sorted({assignment.node for assignment in assignments})
    slots = slots_of(nodes, dict.fromkeys(nodes, ranks))
    masks = {key: np.ones(int(rows), bool) for key, rows in zip(found.shards, found.shard_rows, strict=True) if rows}
    mixes = label_mixes(found) if quota else None
    batch = batch or 8 * len(slots)
    return plan_epochs(found, assignments, masks, slots, batch=batch, epochs=2, shuffle=shuffle, mixes=mixes)


@st.composite
def cases(draw: st.DrawFn) -> Labelled:
    nodes, labels = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    on = st.lists(st.integers(0, nodes - 1), min_size=1, max_size=3, unique=True).map(tuple)
    held: list[tuple[int, ...]] = draw(st.lists(on, min_size=1, max_size=10))
    row = st.lists(st.integers(0, 9), min_size=labels, max_size=labels)
    counts = [draw(row) for _ in held]
    counts[0][0] += 1
    found, assignments = labelled(held, nodes, counts, draw(st.integers(1, 4)))
    for place, each in enumerate(assignments):
        node = draw(st.none() | st.sampled_from(found.nodes))  # where the policy does not look at replicas
        if node is not None and node not in each.sources:
            assignments[place] = replace(each, node=node, reason="told so")
    return found, assignments


@settings(max_examples=100, deadline=None)
@given(
    cases(),
    st.sampled_from([("local", None), ("rotate", None), ("partial", 0.3)]),
    st.integers(1, 2),
    st.sampled_from([1, 2, 8]),
)
def test_a_quota_is_never_farther_reads_nothing_more_over_the_network_and_keeps_steps_and_rows(
    case: Labelled, chosen: tuple[Any, Any], ranks: int, each: int
) -> None:
    shuffle = shuffle_named(chosen[0], 3, chosen[1])
    batch = each * ranks * len({assignment.node for assignment in case[1]})
    made, plain = (scheduled(case, shuffle, quota=quota, ranks=ranks, batch=batch) for quota in (True, False))
    for work, without in zip(made.epochs, plain.epochs, strict=True):
        assert work.quota is not None and without.quota is None
        assert work.quota.at_least - 1e-9 <= work.quota.mean <= work.quota.before_mean + 1e-9
        assert work.plan.steps == without.plan.steps
        steps = work.plan.steps
        assert all(each * (steps - 1) <= share.samples <= each * steps for share in work.plan.shares)
        used: Counter[str] = Counter()
        for share in work.plan.shares:
            for segment in share.segments:
                used[segment.shard] += segment.samples
        assert used == Counter(dict(zip(case[0].shards, case[0].shard_rows.tolist(), strict=True)))
        if chosen[0] != "partial":
            assert away(work.plan, case[0]) == work.plan.away <= away(without.plan, case[0])
    mixed = (case[0], list(reversed(case[1])))
    again = scheduled(mixed, shuffle, ranks=ranks, batch=batch)
    assert [(work.plan, work.quota) for work in again.epochs] == [(work.plan, work.quota) for work in made.epochs]


def test_ranks_of_shards_of_one_class_come_near_to_what_their_replicas_allow() -> None:
    """Five nodes, each within reach of six of ten classes: 0.8 without, and no choice is below 0.4."""
    held = [tuple((i + k) % 5 for k in range(3)) for i in range(10)]
    case = labelled(held, 5, [[500 * (i == label) for label in range(10)] for i in range(10)], 10)
    (work, _) = scheduled(case, batch=160).epochs
    assert work.quota is not None
    assert work.quota.before_mean == work.quota.before_max == pytest.approx(0.8)
    assert work.quota.at_least == pytest.approx(0.4, abs=0.01)
    assert work.quota.mean < 0.47
    assert work.plan.away == 0
    samples = [share.samples for share in work.plan.shares]
    assert max(samples) - min(samples) <= 32, "a step's part"


@pytest.mark.parametrize("name", ["local", "rotate"])
def test_mixed_shards_on_nodes_with_several_ranks_come_near_too_and_rotation_still_rotates(name: Any) -> None:
    draw = np.random.default_rng(5)
    counts = [draw.multinomial(200, draw.dirichlet([0.3] * 8)).tolist() for _ in range(120)]
    case = labelled(laid_out(8, 120, 3, seed=2), 8, counts, 4)
    made = scheduled(case, shuffle_named(name, 1), ranks=2)
    for work in made.epochs:
        assert work.quota is not None
        assert work.quota.mean < 0.6 * work.quota.before_mean
        assert work.plan.away == 0
    assert (made.epochs[0].plan == made.epochs[1].plan) == (name == "local")


def test_with_one_replica_there_is_nothing_to_choose_and_the_plan_is_the_one_without() -> None:
    case = of_one_class(5, 20, 2, 10, replicas=1)
    made = scheduled(case)
    assert made.gang == scheduled(case, quota=False).gang
    quota = made.epochs[0].quota
    assert quota is not None and quota.mean == quota.before_mean > 0.5


def test_what_is_not_worked_on_where_it_lies_stays_on_its_node() -> None:
    _, assignments = of_one_class(4, 12, 2, 4)
    far = [Assignment(shard=a.shard, node="node0009", sources=a.sources, reason="told so") for a in assignments[:3]]
    slots = slots_of(
        ["node0009", *(f"node{n:04d}" for n in range(4))], Counter({f"node{n:04d}": 1 for n in (*range(4), 9)})
    )
    able = able_ranks([*far, *assignments[3:]], slots)
    assert all(able[each.shard] == [4] for each in far)
    assert all(len(able[each.shard]) == 3 and 4 not in able[each.shard] for each in assignments[3:])


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_no_choice_of_holders_is_below_the_bound(data: st.DataObject) -> None:
    """All of them, one after the other; single row groups, so that every choice is a division of its own."""
    nodes = data.draw(st.integers(2, 3))
    on = st.lists(st.integers(0, nodes - 1), min_size=1, max_size=2, unique=True).map(lambda each: tuple(sorted(each)))
    held: list[tuple[int, ...]] = data.draw(st.lists(on, min_size=2, max_size=6))
    counts = [data.draw(st.lists(st.integers(0, 4), min_size=3, max_size=3).filter(any)) for _ in held]
    found, assignments = labelled(held, nodes, counts, 1)
    mixes, names = label_mixes(found), [f"node{number:04d}" for number in range(nodes)]
    slots = slots_of(names, dict.fromkeys(names, 1))
    selected = {key: [int(rows)] for key, rows in zip(found.shards, found.shard_rows, strict=True)}
    able = able_ranks(assignments, slots)
    for choice in product(*(able[key] for key in found.shards)):
        there = [
            Assignment(shard=key, node=names[rank], sources=(names[rank],))
            for key, rank in zip(found.shards, choice, strict=True)
        ]
        plan = plan_epoch(there, selected, slots, 10**6)  # one step: nothing has to be even
        distance = mean_distance(expected_labels(plan, mixes))
        bound = quota_of(plan, plan, able, mixes).at_least
        assert bound <= distance + 1e-9
    groups = [(key, sum(rows)) for key, rows in selected.items()]
    at = [able[key][0] for key, _ in groups]
    after = spread(groups, at, able, mixes, nodes)
    assert all(rank in able[key] for (key, _), rank in zip(groups, after, strict=True))
    squares = []
    for chosen in (at, after):
        table = np.zeros((nodes, 3))
        for (key, rows), rank in zip(groups, chosen, strict=True):
            table[rank] += rows * mixes[key]
        load = table.sum(axis=1)
        squares.append(((table - table.mean(axis=0)) ** 2).sum() + LOAD_WEIGHT * ((load - load.mean()) ** 2).sum())
    assert squares[1] <= squares[0] + 1e-9


def test_a_quota_without_labels_or_with_a_global_shuffle_is_refused_before_anything_starts() -> None:
    for train, columns, says in (
        ({"class_quota": True, "shuffle": "global"}, {}, "no effect with `shuffle: global`"),
        ({"class_quota": True}, {"label": None}, "name their column in `columns.label`"),
        ({"class_quota": "some"}, {}, "valid boolean"),
    ):
        with pytest.raises(ValidationError, match=says):
            job(train={"model": "m:net", **train}, columns=columns)
    where = cluster()
    blind = catalog([(100, ("node0", "node1"))] * 4, [node.name for node in where.nodes])
    spec = job(train={"model": "m:net", "class_quota": True})
    with pytest.raises(PlacementError, match="needs the labels of photos") as refused:
        check(POLICIES["data-local"](spec, blind, where), spec, blind, where)
    assert "columns.label" in refused.value.hint


def test_the_report_says_what_the_quota_changed_and_what_it_could_not() -> None:
    told = {"before_mean": 0.8, "before_max": 0.9, "mean": 0.44, "max": 0.7, "at_least": 0.4}
    event = {"type": "mixing", "launch": 0, "shuffle": "local", "exchange": None, "epochs": []}
    figures = mixing_figures([event | {"class_quota": {"0": told, "1": told | {"mean": 0.46}}}])
    assert figures is not None
    assert figures["class_quota"] == told | {"mean": pytest.approx(0.45)}
    assert "from 0.80 to 0.45, where no choice among these replicas is below 0.40" in in_words(figures)
    without = mixing_figures([event | {"class_quota": {}}])
    assert without is not None and without["class_quota"] is None and "quota" not in in_words(without)


def test_a_run_under_a_quota_uses_every_sample_once_from_its_own_disks(tmp_path: Path) -> None:
    here = worlds.cluster_file(tmp_path, storage=4, replication=2)
    worlds.fill(tmp_path / "home", here, worlds.image_folder(tmp_path / "images", 60))
    what = worlds.job_file(tmp_path / "job", preprocess=False, train={"class_quota": True, "epochs": 1})
    code, report = run(tmp_path / "home", what, here, "data-local", run_id="quota")
    assert code == 0, report
    local = arm(report, "data-local")
    (stage,) = local["stages"]
    counted = stage["samples"]
    assert (counted["seen"], counted["repeated"], counted["dropped"]) == (counted["expected"], 0, 0)
    quota = Quota(**stage["mixing"]["class_quota"])
    assert quota.at_least <= quota.mean <= quota.before_mean
    assert local["headline_bytes"]["input"] == local["headline_bytes"]["input_local"]
    told = _planned(tmp_path / "home", what, here)
    for key in ("before_mean", "before_max", "mean", "max", "at_least"):
        assert told[key] == pytest.approx(getattr(quota, key)), f"{key} is what the run's own division gave"


def _planned(home: Path, what: Path, here: Path) -> dict[str, Any]:
    """The figures of `plan` for the same job, from the catalog of the same folders."""
    spec, where = load_job(what), load_cluster(here)
    token = "t" * 32
    with contextlib.ExitStack() as stack:
        stores = {}
        for node in where.nodes:
            server = StoreServer(node=node.name, root=embedded.node_root(home, where.name, node.name), token=token)
            stack.callback(server.close)
            stores[node.name] = server.location
        store = Store(node="head", root=None, stores=stores, token=token, counter=ByteCounter())
        stack.callback(store.close)
        found = probe(store, where, spec.dataset, spec.columns, list(stores))
        masks = rows_that_train(spec, found, store)
    plan = POLICIES["data-local"](spec, found, where)
    told = foretold(estimate(plan, spec, found, where, training=masks), spec, found)
    return dict(told["label_distance"])


def foretold_of(case: Labelled, **train: Any) -> dict[str, Any]:
    """What `plan` says of the labels of this data set's ranks under data-local."""
    found, _ = case
    found = replace(found, dataset="photos")
    here = cluster(len(found.nodes), compute=0)
    here = here.model_copy(
        update={"nodes": tuple(n.model_copy(update={"name": f"node{i:04d}"}) for i, n in enumerate(here.nodes[:-1]))}
    )
    spec = job(train={"model": "m:net", "epochs": 3, "batch": 8 * len(found.nodes), **train})
    masks = {key: np.ones(int(rows), bool) for key, rows in zip(found.shards, found.shard_rows, strict=True)}
    plan = POLICIES["data-local"](spec, found, here)
    told = foretold(estimate(plan, spec, found, here, training=masks), spec, found)
    assert told["label_distance_reason"] == ""
    return dict(told["label_distance"])


def test_the_distances_of_ranks_without_a_choice_are_those_of_the_shards_that_they_hold() -> None:
    """Every node holds one shard alone, so what a rank will use is what the catalog counts of that shard."""
    counts = [[90, 10, 0], [0, 100, 0], [20, 20, 60], [30, 30, 40]]
    case = labelled([(0,), (1,), (2,), (3,)], 4, counts, groups=2)
    told = foretold_of(case)
    whole = np.sum(counts, axis=0)
    each = [label_distance(count, whole) for count in counts]
    for row, expected in zip(told["by_rank"], each, strict=True):
        assert row["before"] == row["planned"] == pytest.approx(expected, abs=0.02), (
            "rows are divided evenly, in whole steps"
        )
    assert told["mean"] == told["before_mean"] == pytest.approx(np.mean(each), abs=0.02)
    assert told["max"] == max(row["planned"] for row in told["by_rank"]) and told["at_least"] is None
    assert "`train.class_quota` may bring them nearer" in foretold_in_words(told)


def test_what_a_quota_and_a_shuffle_change_is_foretold() -> None:
    case = of_one_class(8, 32, 2, 8)
    plain = foretold_of(case)
    quota = foretold_of(case, class_quota=True)
    assert quota["before_mean"] == plain["mean"] and quota["before_max"] == plain["max"]
    assert quota["at_least"] <= quota["mean"] < quota["before_mean"] - 0.1
    assert f"with the class quota {quota['mean']:.2f}" in foretold_in_words(quota)
    assert f"no choice among these replicas is below {quota['at_least']:.2f}" in foretold_in_words(quota)
    dealt = foretold_of(case, shuffle="global")
    assert dealt["before_mean"] == plain["mean"] and dealt["mean"] < 0.1
    some, more = (foretold_of(case, shuffle="partial", exchange=share)["mean"] for share in (0.1, 0.6))
    assert plain["mean"] > some > more > dealt["mean"]
    rotated = foretold_of(case, shuffle="rotate")
    assert rotated["before_mean"] == plain["mean"] and "with `shuffle: rotate`" in foretold_in_words(rotated)
