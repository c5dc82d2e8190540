"""A gang in one process: the same samples, weights, records and checkpoints as real ranks, on one model."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datalocal import training
from datalocal.errors import TaskError
from datalocal.placement.gang import Segment
from datalocal.tasks.model import TrainTask
from datalocal.tasks.train.agent import run_gang_in_process
from datalocal.tasks.train.loop import run_loop_in_turns
from datalocal.tasks.train.reader import Pass, RawBatch, ShardReader
from tests import gangs

SHARDS = {"p0": ("a", [8, 8]), "p1": ("b", [8, 5])}


def run(world: gangs.World, tasks: list[TrainTask]) -> None:
    run_gang_in_process(tasks, [replace(world.contexts[task.node], in_process=True) for task in tasks])


def state(world: gangs.World, name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = torch.load(io.BytesIO(world.kept.checkpoints[name]), weights_only=False)
    return loaded


def by_node(world: gangs.World) -> list[tuple[str, list[Segment]]]:
    return [(node, world.segments(node)) for node in ("a", "b")]


def test_torch_has_the_threads_of_one_rank_while_ranks_take_turns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of the machine's would be no rank's, and on a busy one they wait for each other."""
    seen: list[int] = []
    before = torch.get_num_threads()

    def counted(sessions: Sequence[training.Session]) -> None:
        seen.append(torch.get_num_threads())
        run_loop_in_turns(sessions)

    monkeypatch.setattr("datalocal.tasks.train.in_process.run_loop_in_turns", counted)
    with gangs.world(tmp_path, SHARDS) as world:
        world.contexts["b"] = replace(world.contexts["b"], cores=before + 2)
        run(world, world.tasks(by_node(world), 5))
    assert seen == [before + 2] and torch.get_num_threads() == before


def test_a_rank_fetches_its_first_window_at_once_and_the_next_epochs_before_it_validates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else all ranks would wait for their data at the beginning of each epoch, those that read from afar the longest."""
    order: dict[int, list[str]] = {0: [], 1: []}
    prefetch, batches = ShardReader.prefetch, ShardReader.batches

    def noted(reader: ShardReader, what: Pass) -> None:
        order[what.rank].append(f"fetch {what.epoch}")
        prefetch(reader, what)

    def read(reader: ShardReader, what: Pass, then: Pass | None = None) -> Iterator[RawBatch]:
        order[what.rank].append(f"train {what.epoch}" if what.shuffle else "validate")
        return batches(reader, what, then)

    monkeypatch.setattr(ShardReader, "prefetch", noted)
    monkeypatch.setattr(ShardReader, "batches", read)
    with gangs.world(tmp_path, SHARDS) as world:
        run(world, world.tasks(by_node(world), 5, train={"epochs": 3}, validate=True))
    through = ["fetch 0", "train 0", "fetch 1", "validate", "train 1", "fetch 2", "validate", "train 2", "validate"]
    assert order == {0: through, 1: through}


def test_every_sample_is_used_once_in_every_epoch_and_every_checkpoint_is_complete(tmp_path: Path) -> None:
    with gangs.world(tmp_path, SHARDS) as world:
        run(world, world.tasks(by_node(world), 5, train={"epochs": 2, "checkpoint_every_steps": 2}, validate=True))
        kept = world.kept
        for epoch in range(2):
            assert {shard: uses.tolist() for shard, uses in kept.uses(epoch).items()} == {
                "p0": [1] * 16,
                "p1": [1] * 13,
            }
        names = [f"l0-e{epoch}-s{step}" for epoch in range(2) for step in (2, 4, 5)]
        assert list(kept.checkpoints) == names
        lines = kept.of("samples")
        assert sorted((line["checkpoint"], line["rank"]) for line in lines) == sorted(
            (n, r) for n in names for r in (0, 1)
        )
        assert [(line["from_step"], line["to_step"]) for line in lines if line["rank"] == 1] == [
            (0, 2),
            (2, 4),
            (4, 5),
        ] * 2
        validated = [(v["epoch"], v["rank"], v["total"]) for v in kept.of("validation")]
        assert validated == [(0, 0, 16), (0, 1, 13), (1, 0, 16), (1, 1, 13)]
        assert all(0 <= v["correct"] <= v["total"] for v in kept.of("validation"))
        assert [(r["rank"], r["steps"], r["images"]) for r in kept.of("rank")] == [(0, 10, 32), (1, 10, 26)]
        local = {
            (row["source"], row["destination"])
            for r in kept.of("rank")
            for row in r["bytes"]
            if row["class"] == "input"
        }
        assert local == {("a", "a"), ("b", "b")}
        assert not kept.of("failure")


@pytest.mark.parametrize("sizes", [[16, 13], [21, 8], [29, 0], [9, 8, 7, 5]])
def test_the_weights_make_any_division_into_ranks_equal_to_one_rank(tmp_path: Path, sizes: list[int]) -> None:
    """Every step uses all samples, so that only the division differs; parameters agree up to the order of summation."""
    with gangs.world(tmp_path, SHARDS) as world:
        everything = [*world.segments("a"), *world.segments("b")]
        train = {"epochs": 4, "checkpoint_every_steps": 1}
        run(world, world.tasks([("a", everything)], 1, train=train))
        alone = state(world, "l0-e3-s1")["model"]
        run(world, world.tasks([("a", share) for share in cut(everything, sizes)], 1, train=train, launch=1))
        together = state(world, "l1-e3-s1")["model"]
        for key, value in alone.items():
            assert torch.allclose(value, together[key], rtol=1e-4, atol=1e-6), key
        start = state(world, "l0-e0-s1")["model"]
        assert any(not torch.equal(start[key], alone[key]) for key in alone), "training moves the parameters"


def cut(segments: list[Segment], sizes: list[int]) -> list[list[Segment]]:
    """Samples divided in order into shares of these sizes; row groups are split."""
    shares: list[list[Segment]] = []
    rest = list(segments)
    for size in sizes:
        share: list[Segment] = []
        while size:
            segment = rest.pop(0)
            taken = min(size, segment.samples)
            share.append(replace(segment, stop=segment.start + taken))
            size -= taken
            if taken < segment.samples:
                rest.insert(0, replace(segment, start=segment.start + taken))
        shares.append(share)
    return shares


def test_resuming_from_a_checkpoint_within_an_epoch_ends_in_the_same_model(tmp_path: Path) -> None:
    train = {"epochs": 2, "checkpoint_every_steps": 2}
    with gangs.world(tmp_path, SHARDS) as world:
        run(world, world.tasks(by_node(world), 5, train=train))
        whole, used = state(world, "l0-e1-s5"), world.kept.uses(0)
        world.kept.records.clear()
        run(world, world.tasks(by_node(world), 5, train=train, start_step=2, checkpoint="l0-e0-s2", launch=1))
        resumed = state(world, "l1-e1-s5")
        assert all(torch.equal(value, resumed["model"][key]) for key, value in whole["model"].items())
        momenta = (state_["optimizer"]["state"][0]["momentum_buffer"] for state_ in (whole, resumed))
        assert torch.equal(next(momenta), next(momenta))
        rest = world.kept.uses(0)
        assert sum(int(np.sum(uses)) for uses in rest.values()) == 29 - (16 * 2 // 5 + 13 * 2 // 5)
        assert all((rest[shard] <= used[shard]).all() for shard in rest)
        assert world.kept.of("samples")[0]["from_step"] == 2


def test_a_loss_that_is_not_a_number_stops_the_run_and_names_rank_epoch_and_step(tmp_path: Path) -> None:
    with gangs.world(tmp_path, SHARDS) as world:
        tasks = world.tasks(by_node(world), 3, train={"loss": "job_code:not_a_number"})
        with pytest.raises(TaskError, match=r"rank 0: the loss is nan in epoch 0, step 0"):
            run(world, tasks)
        assert world.kept.of("failure")[0]["cause"].startswith("rank 0: the loss is nan")
        assert not world.kept.checkpoints


def test_code_that_raises_is_reported_with_its_trace(tmp_path: Path) -> None:
    code = {"own.py": "def model(classes):\n    raise KeyError('no such layer')\n"}
    with gangs.world(tmp_path, SHARDS, code=code) as world, pytest.raises(TaskError, match="no such layer") as caught:
        run(world, world.tasks(by_node(world), 3, train={"model": "own:model"}))
    assert "own.py" in caught.value.trace


def test_a_model_that_is_none_is_refused(tmp_path: Path) -> None:
    code = {"other.py": "def model(classes):\n    return classes\n"}
    with gangs.world(tmp_path, SHARDS, code=code) as world, pytest.raises(TaskError, match="other:model returned int"):
        run(world, world.tasks(by_node(world), 3, train={"model": "other:model"}))


def test_scripts_are_refused_in_process(tmp_path: Path) -> None:
    refusal = r"train\.py cannot run under the in-process executor"
    with gangs.world(tmp_path, SHARDS) as world, pytest.raises(TaskError, match=refusal):
        run(world, world.tasks(by_node(world), 3, train={"model": None, "script": "train.py"}))


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    with gangs.world(tmp_path, SHARDS) as world:
        run(world, world.tasks(by_node(world), 2))
        with pytest.raises(TaskError, match="l0-e0-s2: the checkpoint's parameters do not fit the model"):
            run(world, world.tasks(by_node(world), 2, checkpoint="l0-e0-s2", train={"model": "job_code:wide"}))


def test_rows_of_another_node_are_read_over_the_wire_and_counted_so(tmp_path: Path) -> None:
    with gangs.world(tmp_path, SHARDS) as world:
        everything = [*world.segments("a"), *world.segments("b")]
        run(world, world.tasks([("a", everything)], 2))
        (record,) = world.kept.of("rank")
        read = {row["source"]: row["bytes"] for row in record["bytes"] if row["class"] == "input"}
        assert read["b"] > 13 * 300
        assert set(read) == {"a", "b"}
