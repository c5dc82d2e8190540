"""What keeps the ranks' replicas alike, and a resumed run like an uninterrupted one."""

from __future__ import annotations

import random

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


def seed_generators(seed: int, *where: int) -> None:
    """Seed torch's, NumPy's and Python's global generators, which users' models and augmentations draw from."""
    drawn = np.random.SeedSequence([seed, *(where or (2**32 - 1,))]).generate_state(3)
    torch.manual_seed(int(drawn[0]))
    np.random.seed(int(drawn[1]))
    random.seed(int(drawn[2]))
