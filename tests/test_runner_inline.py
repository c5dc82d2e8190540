"""The whole story in one process: every policy, every byte, every sample, over real stores and sockets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from datalocal import runner
from datalocal.errors import DatalocalError, PlacementError, SpecError
from datalocal.ledger.run_dir import RunDir
from datalocal.report.schema import validate
from tests import worlds

ALL = ("data-local", "random", "reduce-then-ship", "central-nas", "central-staged")


def run(home: Path, job: Path, cluster: Path, *policies: str, **extra: Any) -> tuple[int, dict[str, Any]]:
    prepared = runner.prepare(
        runner.RunRequest(
            job_file=job,
            cluster_file=cluster,
            home=home,
            policies=policies or ("data-local",),
            executor="inline",
            **extra,
        )
    )
    code = runner.execute(prepared)
    return code, prepared.read_report()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A home with 120 pictures on 4 storage nodes, a job and its cluster file."""
    base = tmp_path_factory.mktemp("world")
    cluster = worlds.cluster_file(base, compute=2)
    home = base / "home"
    worlds.fill(home, cluster, worlds.image_folder(base / "images"))
    return home, worlds.job_file(base / "job"), cluster


@pytest.fixture(scope="module")
def report(world: tuple[Path, Path, Path]) -> dict[str, Any]:
    """One run with all policies as arms."""
    home, job, cluster = world
    code, found = run(home, job, cluster, *ALL)
    assert code == 0, found
    return found


def arm(report: dict[str, Any], policy: str) -> dict[str, Any]:
    return next(arm for arm in report["arms"] if arm["policy"] == policy)


def moved(arm: dict[str, Any], class_: str, stage: str | None = None) -> int:
    return sum(
        row["bytes"]
        for row in arm["bytes"]
        if row["class"] == class_ and row["source"] != row["destination"] and stage in (None, row["stage"])
    )


def input_bytes(report: dict[str, Any]) -> int:
    """What data-local preprocess read from its own disks: all of the input."""
    local = arm(report, "data-local")
    return sum(
        row["bytes"]
        for row in local["bytes"]
        if row["class"] == "input" and row["stage"] == "preprocess" and row["source"] == row["destination"]
    )


def test_the_report_keeps_its_contract(report: dict[str, Any]) -> None:
    validate(report)
    assert [a["state"] for a in report["arms"]] == ["completed"] * len(ALL)


def test_data_local_preprocess_reads_nothing_over_the_network(report: dict[str, Any]) -> None:
    assert moved(arm(report, "data-local"), "input", "preprocess") == 0
    stage = arm(report, "data-local")["stages"][0]
    assert stage["tasks"]["node_local"] == stage["tasks"]["total"] > 0


def test_central_nas_reads_all_of_the_input_over_the_network(report: dict[str, Any]) -> None:
    assert moved(arm(report, "central-nas"), "input", "preprocess") == input_bytes(report)


def test_central_staged_moves_every_shard_once(report: dict[str, Any], world: tuple[Path, Path, Path]) -> None:
    staged = arm(report, "central-staged")
    shards = {
        path.name: path.stat().st_size for path in world[0].glob(".clusters/small/nodes/*/data/pictures/*.parquet")
    }
    assert moved(staged, "staging") == sum(shards.values())
    assert moved(staged, "input", "preprocess") == 0


def test_reduce_then_ship_ships_only_the_small_images(report: dict[str, Any]) -> None:
    ship = arm(report, "reduce-then-ship")
    assert moved(ship, "input", "preprocess") == 0
    assert 0 < moved(ship, "output") < input_bytes(report)


@pytest.mark.parametrize("policy", ALL)
def test_every_image_is_preprocessed_once_and_every_sample_used_once_per_epoch(
    report: dict[str, Any], policy: str
) -> None:
    preprocess, train = [stage for stage in arm(report, policy)["stages"] if stage["kind"] != "staging"]
    assert preprocess["images"] == 120
    samples = train["samples"]
    assert samples["seen"] == samples["expected"] > 0
    assert samples["repeated"] == samples["dropped"] == samples["rolled_back"] == 0


def test_the_verdict_on_one_host_rests_on_bytes_alone(report: dict[str, Any]) -> None:
    assert report["verdict"]["choice"] in {"local", "reduce-and-ship", "central", "none"}
    assert "bytes" in report["verdict"]["sentence"]


def test_joules_without_a_meter_are_missing_and_never_zero(report: dict[str, Any]) -> None:
    for row in [row for a in report["arms"] for row in a["joules"]]:
        if row["origin"] == "missing":
            assert row["joules"] is None and row["reason"]


def test_a_second_run_of_the_same_id_is_refused(world: tuple[Path, Path, Path]) -> None:
    home, job, cluster = world
    run(home, job, cluster, run_id="twice", overrides=("train=null",))
    with pytest.raises(DatalocalError, match="twice"):
        run(home, job, cluster, run_id="twice")


def test_an_unknown_policy_is_refused_before_anything_starts(world: tuple[Path, Path, Path]) -> None:
    home, job, cluster = world
    before = sorted(home.iterdir())
    with pytest.raises(PlacementError, match="data-local"):
        run(home, job, cluster, "data-locl")
    assert sorted(home.iterdir()) == before


def test_reduce_then_ship_without_a_preprocess_stage_is_refused(world: tuple[Path, Path, Path], tmp_path: Path) -> None:
    home, _, cluster = world
    code, found = run(home, worlds.job_file(tmp_path, preprocess=False), cluster, "reduce-then-ship")
    assert code == 2
    assert found["arms"][0]["state"] == "failed"


def test_a_data_set_that_is_not_there_is_named_with_those_that_are(
    world: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    home, _, cluster = world
    job = worlds.job_file(tmp_path, dataset="picturs")
    prepared = runner.prepare(runner.RunRequest(job_file=job, cluster_file=cluster, home=home, executor="inline"))
    assert runner.execute(prepared) == 2
    error = prepared.state["error"]
    assert "picturs" in error and "pictures" in error


def test_the_same_seed_gives_the_same_sample_order_and_weights(world: tuple[Path, Path, Path]) -> None:
    home, job, cluster = world
    losses = []
    for attempt in range(2):
        code, _ = run(home, job, cluster, run_id=f"same-{attempt}", overrides=("train.epochs=1",))
        assert code == 0
        events = list(RunDir.open(home / f"same-{attempt}").events("data-local"))
        losses.append([(e["correct"], e["loss_sum"]) for e in events if e["type"] == "validation"])
    assert losses[0] == losses[1]


def test_a_key_that_does_not_exist_is_refused_with_the_near_one(world: tuple[Path, Path, Path]) -> None:
    home, job, cluster = world
    with pytest.raises(SpecError, match=r"train\.epoch\b.*unknown key") as refused:
        run(home, job, cluster, overrides=("train.epoch=3",))
    assert "epochs" in str(refused.value)


@pytest.mark.parametrize("shuffle", ["local", "rotate"])
def test_a_gang_of_two_trains_on_everything_and_fetches_what_it_does_not_hold(
    world: tuple[Path, Path, Path], tmp_path: Path, shuffle: str
) -> None:
    """Results have one copy, so that two of four nodes hold a part of them; what they do not is read in every epoch."""
    home, _, cluster = world
    job = worlds.job_file(
        tmp_path / "job",
        preprocess={"output_replication": 1},
        train={"gang": {"nodes": 2, "choose": "spread"}, "shuffle": shuffle},
    )
    code, found = run(home, job, cluster)
    assert code == 0
    (only,) = found["arms"]
    train = next(stage for stage in only["stages"] if stage["kind"] == "train")
    assert train["samples"]["seen"] == train["samples"]["expected"] > 0
    assert train["samples"]["repeated"] == train["samples"]["dropped"] == 0
    readers = {r["destination"] for r in only["bytes"] if r["stage"] == train["name"] and r["class"] == "input"}
    assert len(readers) == 2
    assert moved(only, "input", train["name"]) > 0
    assert {row["reason"] for row in only["not_local"]} == {"no node of the gang holds a replica"}
