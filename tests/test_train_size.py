"""The sizes of a model, worked out beside a run by a process that never outlives its question."""

from __future__ import annotations

import textwrap
from pathlib import Path

import psutil
import pytest

from datalocal.spec.job import Train
from datalocal.tasks.train.size import Sizes, SizesInChild
from tests import processes

CODE = textwrap.dedent(
    """
    import threading
    import torch

    def net(classes):
        return torch.nn.Linear(10, classes)

    def stuck(classes):
        threading.Event().wait()
    """
)


def ask(folder: Path, model: str) -> SizesInChild:
    (folder / "own_model.py").write_text(CODE, encoding="utf-8")
    return SizesInChild(Train.model_validate({"model": f"own_model:{model}"}), folder, classes=3)


def child() -> psutil.Process:
    ours = "datalocal.tasks.train.size"
    (found,) = [each for each in psutil.Process().children() if ours in processes.words(each)]
    return found


def test_the_child_tells_what_the_model_weighs(tmp_path: Path) -> None:
    asked = ask(tmp_path, "net")
    found = asked.result(timeout_seconds=240)  # torch, at the back of the queue
    assert found.gradient_bytes == 4 * (10 * 3 + 3)
    assert found.checkpoint_bytes is not None and found.checkpoint_bytes > found.gradient_bytes
    asked.close()


@pytest.mark.parametrize("waits", [True, False])
def test_a_child_that_does_not_end_is_ended_by_who_asked(tmp_path: Path, waits: bool) -> None:
    asked = ask(tmp_path, "stuck")
    process = child()
    if waits:
        assert asked.result(timeout_seconds=0.5) == Sizes()
    asked.close()
    assert not psutil.pid_exists(process.pid), "not even as a zombie"
