"""From a batch as it was read to what the trainable model takes: frozen stages after the cut, and augmentation between them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch

from datalocal import training
from datalocal.spec.pipeline import RESIZED
from datalocal.tasks.frozen import build_stages
from datalocal.tasks.model import Cut


class InputsSession(Protocol):
    """What building the inputs needs of a session."""

    node: str
    device: torch.device
    folder: Path | None
    cut: Cut | None

    def load(self, target: str) -> Any: ...


class Inputs:
    """Callable on the images of a batch; no gradients flow through it, and DDP and checkpoints do not know it.

    Raises TaskError when a frozen stage cannot be built or has other weights than the run.
    """

    def __init__(self, session: InputsSession) -> None:
        self._steps: list[tuple[Callable[[torch.Tensor], torch.Tensor], bool]] = []
        """(what to do, whether on training samples only)"""
        cut = session.cut
        if cut is None:
            return
        stages = cut.pipeline.after(cut.at)
        modules = build_stages(cut, stages, session.folder, session.device, node=session.node, task="train")
        self._augment(session, cut, RESIZED)
        if cut.at != RESIZED:
            self._augment(session, cut, cut.at)
        for stage, module in zip(stages, modules, strict=True):
            self._steps.append((module, False))
            self._augment(session, cut, stage.name)

    def _augment(self, session: InputsSession, cut: Cut, after: str) -> None:
        augment = cut.pipeline.augment
        if augment is None or augment.after != after:
            return
        transform = session.load(augment.transform)
        self._steps.append((lambda images: transform(images, **augment.arguments), True))

    def __call__(self, images: torch.Tensor, *, training_samples: bool) -> torch.Tensor:
        """float32, on the images' device."""
        values = training.to_float(images)
        if not self._steps:
            return values
        with torch.no_grad():
            for step, only_in_training in self._steps:
                if training_samples or not only_in_training:
                    values = step(values)
        return values
