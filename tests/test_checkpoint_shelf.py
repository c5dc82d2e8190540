"""Checkpoints in the cluster's store: a run goes on from there when its own directory has lost them."""

from __future__ import annotations

import pickle
import shutil
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch

from datalocal import runner
from datalocal.errors import SpecError
from datalocal.launch.embedded import node_root
from datalocal.ledger.run_dir import RunDir
from tests import worlds

STUMBLING = textwrap.dedent(
    """
    from pathlib import Path

    import torch


    class Stumbling(torch.nn.Module):
        def __init__(self, classes, stone):
            super().__init__()
            self.body = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(32 * 32 * 3, classes))
            self.stone, self.calls = stone, 0

        def forward(self, images):
            self.calls += 1
            if Path(self.stone).exists() and self.calls > 14:  # four ranks take turns: in the fourth step
                raise RuntimeError("stumbled")
            return self.body(images)
    """
)


class World:
    """Four nodes with 96 pictures, and a job that fails while the stone is there."""

    def __init__(self, base: Path) -> None:
        self.home, self.folder, self.stone = base / "home", base / "job", base / "stone"
        self.cluster = worlds.cluster_file(base)
        worlds.fill(self.home, self.cluster, worlds.image_folder(base / "images", 96))

    def prepare(self, copies: int | None) -> RunDir:
        train = {"model": "code_of_job:Stumbling", "arguments": {"stone": str(self.stone)}, "validation": None}
        job = worlds.job_file(self.folder, preprocess=False, train={**train, "checkpoint_replication": copies})
        (self.folder / "code_of_job.py").write_text(STUMBLING)
        return runner.prepare(
            runner.RunRequest(job_file=job, cluster_file=self.cluster, home=self.home, executor="inline")
        )

    def stumble(self, copies: int | None) -> RunDir:
        """A run that failed after its first checkpoint, and whose directory has lost it."""
        self.stone.touch()
        run = self.prepare(copies)
        assert runner.execute(run) != 0 and "stumbled" in run.state["error"]
        assert [event["name"] for event in run.events("data-local") if event["type"] == "checkpoint"] == ["l0-e0-s2"]
        shutil.rmtree(run.path / "arms" / "data-local" / "checkpoints")
        self.stone.unlink()
        return run

    def kept(self, run: RunDir) -> dict[str, list[Path]]:
        """Copies in the nodes' folders, by file name."""
        found: dict[str, list[Path]] = {}
        for number in range(1, 5):
            data = node_root(self.home, "small", f"node{number}") / "data"
            for path in (data / "checkpoints" / run.id / "data-local").glob("*"):
                found.setdefault(path.name, []).append(path)
        return found


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return World(tmp_path_factory.mktemp("shelf"))


def test_a_run_goes_on_from_the_stores_checkpoint_and_leaves_its_weights_there(world: World) -> None:
    run = world.stumble(copies=2)
    (copies,) = world.kept(run).values()
    rows = run.read_report()["arms"][0]["bytes"]
    to_nodes = [row for row in rows if row["class"] == "checkpoint" and row["destination"] != "head"]
    assert sum(row["bytes"] for row in to_nodes) == sum(path.stat().st_size for path in copies)
    first, second = (path.parents[4].name for path in copies)
    assert {first, second} == {"node1", "node3"}, "the writing node's, and one in the other rack"

    assert runner.execute(runner.resume(run.path)) == 0, run.log.read_text() if run.log.exists() else run.state
    launches = [event for event in run.events("data-local") if event["type"] == "launch"]
    assert [launch["checkpoint"] for launch in launches] == [None, "l0-e0-s2"]
    samples = run.read_report()["arms"][0]["stages"][0]["samples"]
    assert samples["seen"] == samples["expected"] == 2 * 96
    assert samples["repeated"] == samples["dropped"] == 0
    kept = world.kept(run)
    assert all(len(paths) == 2 for paths in kept.values())
    last = max((name for name in kept if name.startswith("l1-e1-")), key=lambda name: int(name[7:-5]))
    state = torch.load(kept[last][0], weights_only=False)["model"]
    weights = torch.load(kept["weights.pt"][0], weights_only=True)
    assert weights.keys() == state.keys() and all(torch.equal(weights[key], state[key]) for key in state)


def test_a_copy_that_is_not_what_the_run_wrote_is_never_read(world: World) -> None:
    """Reading a checkpoint can run code, and others may write in the store."""
    run = world.stumble(copies=2)
    (copies,) = world.kept(run).values()
    torn = world.stone.with_name("torn")
    for path in copies:
        path.write_bytes(pickle.dumps(_Trap(torn)))
    assert runner.execute(runner.resume(run.path)) != 0
    assert "l0-e0-s2.ckpt is not the one that this run wrote" in run.state["error"]
    assert not torn.exists()


class _Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._path,)


def test_without_copies_nothing_is_kept_and_a_lost_checkpoint_is_named(world: World) -> None:
    run = world.stumble(copies=None)
    assert world.kept(run) == {}
    assert runner.execute(runner.resume(run.path)) != 0
    assert "has no checkpoint l0-e0-s2" in run.state["error"]


def test_more_copies_than_nodes_are_refused_before_anything_starts(world: World) -> None:
    with pytest.raises(SpecError, match=r"train\.checkpoint_replication: 5 copies need as many storage nodes"):
        world.prepare(copies=5)
