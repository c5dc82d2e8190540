"""Every cut run for real: the bytes that were predicted, the results of the uncut pipeline, the same weights everywhere."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from datalocal import runner
from datalocal.execution import training
from datalocal.execution.cutting import cut_pipeline
from datalocal.ledger.run_dir import RunDir
from datalocal.report.schema import validate
from datalocal.spec.job import load_job
from tests import pipelines, worlds

EXACT = ("resized", "stem", "pool")


@dataclass(frozen=True)
class World:
    home: Path
    cluster: Path
    folder: Path

    def run(self, policy: str, name: str, *, job: Path | None = None, **pipeline: Any) -> tuple[int, RunDir]:
        """Run the job with a pipeline changed so; the run is called `name`."""
        job = job or pipelines.job_file(self.folder / name, **pipeline)
        request = runner.RunRequest(
            job_file=job, cluster_file=self.cluster, home=self.home, policies=(policy,), executor="inline", run_id=name
        )
        prepared = runner.prepare(request)
        return runner.execute(prepared), prepared


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    base = tmp_path_factory.mktemp("world")
    cluster = worlds.cluster_file(base, compute=1)
    worlds.fill(base / "home", cluster, worlds.image_folder(base / "images", side=80))
    return World(base / "home", cluster, base)


def events(run: RunDir) -> list[dict[str, Any]]:
    return list(run.events(run.manifest["policies"][0]))


def validations(run: RunDir) -> list[tuple[int, int, int, int, float]]:
    """(epoch, rank, correct, total, loss) in order."""
    found = [event for event in events(run) if event["type"] == "validation"]
    return [(e["epoch"], e["rank"], e["correct"], e["total"], e["loss_sum"]) for e in found]


def cut_of(run: RunDir) -> dict[str, Any]:
    found: dict[str, Any] = run.read_report()["arms"][0]["cut"]
    return found


def assert_alike(one: RunDir, other: RunDir) -> None:
    """Same samples, same numbers of right answers, same losses to the rounding of float32."""
    mine, theirs = validations(one), validations(other)
    assert len(mine) > 1 and [line[:4] for line in mine] == [line[:4] for line in theirs]
    assert [line[4] for line in mine] == pytest.approx([line[4] for line in theirs], rel=1e-4)


@pytest.fixture(scope="module")
def uncut(world: World) -> RunDir:
    code, run = world.run("central-staged", "uncut", cut="raw")
    assert code == 0, run.state
    return run


@pytest.mark.parametrize("cut", EXACT)
def test_a_cut_ships_what_was_predicted_and_results_are_those_of_the_uncut_pipeline(
    world: World, uncut: RunDir, cut: str
) -> None:
    code, run = world.run("reduce-then-ship", f"ship-{cut}", cut=cut)
    assert code == 0, run.state
    figures = cut_of(run)
    assert figures["cut"] == cut and figures["origin"] == "exact"
    assert figures["measured_bytes_per_sample"] == pytest.approx(figures["predicted_bytes_per_sample"], rel=0.02)
    off_node = run.read_report()["arms"][0]["headline_bytes"]["by_class"]["output"]
    assert off_node == pytest.approx(figures["measured_bytes_per_sample"] * 120)
    assert_alike(run, uncut)
    validate(run.read_report())


def test_uncut_images_are_predicted_from_the_catalog_to_the_byte(uncut: RunDir) -> None:
    figures = cut_of(uncut)
    assert (figures["cut"], figures["origin"]) == ("raw", "catalog")
    assert figures["measured_bytes_per_sample"] == pytest.approx(figures["predicted_bytes_per_sample"], rel=1e-12)


def test_the_same_weights_worked_before_and_after_every_cut(world: World, uncut: RunDir) -> None:
    told = {stage["name"]: stage["sha256"] for stage in uncut.manifest["frozen"]}
    assert cut_of(uncut)["frozen"] == told, "all stages ran in training"
    code, run = world.run("reduce-then-ship", "hashes", cut="stem")
    assert code == 0
    before = [event["record"]["frozen"] for event in events(run) if event["type"] == "task"]
    after = [event["frozen"] for event in events(run) if event["type"] == "rank"]
    assert before and all(found == {"stem": told["stem"]} for found in before)
    assert after and all(found == {"pool": told["pool"]} for found in after)


def test_auto_cuts_where_the_fewest_bytes_are_shipped(world: World, uncut: RunDir) -> None:
    code, run = world.run("reduce-then-ship", "auto")
    assert code == 0, run.state
    table = next(event for event in events(run) if event["type"] == "cut")["table"]
    assert table["chosen"] == table["proposed"] == cut_of(run)["cut"] == "pool"
    assert_alike(run, uncut)


def test_data_local_cuts_train_on_what_lies_beside_them_with_the_uncut_results(world: World) -> None:
    runs = []
    for cut in ("raw", "pool"):
        code, run = world.run("data-local", f"local-{cut}", cut=cut)
        assert code == 0, run.state
        runs.append(run)
    assert_alike(*runs)


def test_samples_come_in_the_same_order_whatever_they_weigh_where_they_are_cut(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rank mixes as many row groups as some memory holds: of features it would hold more than of photographs."""
    monkeypatch.setattr(training, "WINDOW_GROUPS", 1)
    monkeypatch.setattr(training, "GROUP_BYTES", 100_000)
    runs = []
    for cut, policy in (("raw", "central-staged"), ("pool", "reduce-then-ship")):
        code, run = world.run(policy, f"order-{cut}", cut=cut)
        assert code == 0, run.state
        runs.append(run)
    assert_alike(*runs)


def test_float16_ships_half_and_stays_close(world: World, uncut: RunDir) -> None:
    code, run = world.run("reduce-then-ship", "half", cut="stem", dtype="float16")
    assert code == 0, run.state
    figures = cut_of(run)
    assert figures["measured_bytes_per_sample"] == pytest.approx(figures["predicted_bytes_per_sample"], rel=0.02)
    assert figures["measured_bytes_per_sample"] < 8 * 8 * 8 * 2 + 200
    losses = [line[4] for line in validations(run)]
    assert losses == pytest.approx([line[4] for line in validations(uncut)], rel=0.01)
    assert losses != [line[4] for line in validations(uncut)]


def test_a_second_jpeg_is_missing_without_a_sample_and_runs_all_the_same(world: World) -> None:
    code, run = world.run("reduce-then-ship", "jpeg", cut="resized-jpeg")
    assert code == 0, run.state
    figures = cut_of(run)
    assert (figures["predicted_bytes_per_sample"], figures["origin"]) == (None, "missing")
    assert figures["measured_bytes_per_sample"] > 300


def test_augmentation_is_drawn_alike_at_every_cut_that_it_allows(world: World, uncut: RunDir) -> None:
    augment = {"transform": "frozen_code:flip", "after": "stem"}
    runs = []
    for cut, policy in (("raw", "central-staged"), ("stem", "reduce-then-ship")):
        code, run = world.run(policy, f"noise-{cut}", cut=cut, augment=augment)
        assert code == 0, run.state
        runs.append(run)
    assert_alike(*runs)
    assert validations(runs[0]) != validations(uncut), "it does something"


def test_the_frozen_part_is_in_no_checkpoint_and_sends_no_gradients(uncut: RunDir) -> None:
    import io

    import torch

    name = [event["name"] for event in events(uncut) if event["type"] == "checkpoint"][-1]
    content = torch.load(io.BytesIO(uncut.read_checkpoint("central-staged", name)), weights_only=False)
    assert set(content["model"]) == {"weight", "bias"}


def test_a_node_that_draws_other_weights_stops_the_run(world: World, tmp_path: Path) -> None:
    job = pipelines.job_file(tmp_path, cut="pool")
    request = runner.RunRequest(
        job_file=job, cluster_file=world.cluster, home=world.home, executor="inline", run_id="other-weights"
    )
    prepared = runner.prepare(request)
    manifest = (prepared.path / "run.json").read_text()
    right = prepared.manifest["frozen"][0]["sha256"]
    (prepared.path / "run.json").write_text(manifest.replace(right, "0" * 64))
    again = RunDir.open(prepared.path)
    assert runner.execute(again) == 1
    assert "the weights of the frozen stage 'stem' are not those of the run" in again.state["error"]


def test_an_arm_that_is_resumed_keeps_its_cut(world: World, uncut: RunDir, tmp_path: Path) -> None:
    """What the ledger says counts, whatever would be proposed now: shards of the first attempt are there already."""
    job = load_job(pipelines.job_file(tmp_path))
    begun: Any = next(event for event in events(uncut) if event["type"] == "cut")
    arm: Any = SimpleNamespace(job=job, cut=None)
    unread: Any = SimpleNamespace(total_bytes=1200, total_rows=100)
    cut_pipeline(arm, unread, uncut.manifest["frozen"], [begun])
    assert arm.cut.at == "raw" and arm.job.preprocess is None and arm.row_bytes == 12
