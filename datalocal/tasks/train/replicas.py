"""What keeps the ranks' replicas alike, and a resumed run like an uninterrupted one."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
import torch.distributed as dist


def average_buffers(model: torch.nn.Module, samples: int, device: torch.device) -> None:
    """Replace floating-point buffers by their mean over the ranks, weighted by the samples each has seen; all ranks together."""
    buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    if not buffers:
        return
    count = torch.tensor([float(samples)], dtype=torch.float64, device=device)
    parts = torch.cat([count, *(buffer.detach().flatten().double() * samples for buffer in buffers)])
    dist.all_reduce(parts)
    if parts[0] == 0:
        return
    mean, at = parts[1:] / parts[0], 0
    with torch.no_grad():
        for buffer in buffers:
            buffer.copy_(mean[at : at + buffer.numel()].view_as(buffer))
            at += buffer.numel()


class BuffersInTurns:
    """Buffers of ranks that take turns on one model: each rank's forward begins with those that the step began with.

    BatchNorm then normalises over a rank's own batch, as on real ranks, and its running statistics move once per step by the
    mean over the ranks. Real ranks average at checkpoints instead: the same, since these statistics are linear in the batches
    (up to samples that do not divide evenly; statistics change no gradient).
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._buffers = list(model.buffers())
        self._start: list[torch.Tensor] = []
        self._sums: list[torch.Tensor] = []
        self._samples = 0

    @contextmanager
    def step(self) -> Iterator[None]:
        """The forwards of all ranks in one step."""
        self._start = [buffer.detach().clone() for buffer in self._buffers]
        self._sums = [torch.zeros_like(buffer, dtype=torch.float64) for buffer in self._buffers]
        self._samples = 0
        yield
        if not self._samples:
            return
        with torch.no_grad():
            for buffer, total in zip(self._buffers, self._sums, strict=True):
                if buffer.is_floating_point():
                    buffer.copy_(total / self._samples)

    @contextmanager
    def turn(self, samples: int) -> Iterator[None]:
        """One rank's forward over `samples` samples that count."""
        with torch.no_grad():
            for buffer, start in zip(self._buffers, self._start, strict=True):
                buffer.copy_(start)
        yield
        self._samples += samples
        for buffer, total in zip(self._buffers, self._sums, strict=True):
            if buffer.is_floating_point():
                total += buffer.detach().double() * samples


def seed_generators(seed: int, *where: int) -> None:
    """Seed torch's, NumPy's and Python's global generators, which users' models and augmentations draw from."""
    drawn = np.random.SeedSequence([seed, *(where or (2**32 - 1,))]).generate_state(3)
    torch.manual_seed(int(drawn[0]))
    np.random.seed(int(drawn[1]))
    random.seed(int(drawn[2]))
