"""What lies before a pipeline's cut, as the transform of a preprocess task."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datalocal.spec.pipeline import RESIZED, RESIZED_JPEG
from datalocal.tasks.images import Pixels
from datalocal.tasks.model import Cut
from datalocal.tasks.threads import torch_threads
from datalocal.tasks.transform import Transform


def before_cut(cut: Cut, folder: Path | None, device: str, *, node: str, task: str) -> Transform:
    """A transform of images that have the pipeline's size already: stored as they are, or as what the stages make of them.

    Raises TaskError when a stage cannot be built or has other weights than the run.
    """
    name = f"the pipeline up to {cut.at}"
    if cut.at == RESIZED_JPEG:
        return Transform(name=name, call=list, node=node, task=task)
    if cut.at == RESIZED:
        return Transform(name=name, call=_as_ppm, node=node, task=task)
    return Transform(name=name, call=_Stages(cut, folder, device, node, task), node=node, task=task)


def one_thread_per_call(cut: Cut, device: str) -> contextlib.AbstractContextManager[None]:
    """Have torch start no threads of its own: on the CPU as many threads as the node has cores call the stages already."""
    if device != "cpu" or not cut.pipeline.before(cut.at):
        return contextlib.nullcontext()
    return torch_threads(1)


def ppm(image: Pixels) -> bytes:
    """The pixels behind a header of a few bytes: nothing is lost, and the size is known before."""
    return b"P6 %d %d 255\n" % (image.shape[1], image.shape[0]) + image.tobytes()


def _as_ppm(images: Sequence[Pixels]) -> list[bytes]:
    return [ppm(image) for image in images]


class _Stages:
    """The frozen stages on a device; safe to call from several threads."""

    def __init__(self, cut: Cut, folder: Path | None, device: str, node: str, task: str) -> None:
        import torch  # seconds: only cuts within the network pay for it

        from datalocal.tasks.frozen import build_stages

        self._device = torch.device(device)
        self._dtype = getattr(torch, cut.pipeline.dtype)
        stages = build_stages(cut, cut.pipeline.before(cut.at), folder, self._device, node=node, task=task)
        self._model = torch.nn.Sequential(*stages).eval()

    def __call__(self, images: Sequence[Pixels]) -> Any:
        import torch

        from datalocal.training import to_float

        batch = torch.from_numpy(np.stack(images)).to(self._device)
        with torch.no_grad():
            return self._model(to_float(batch)).to(self._dtype)
