"""A small CNN with the normalisation by name: what shuffling costs depends on whether a layer sees other samples of the batch."""

from __future__ import annotations

import torch
from torch import nn


def cnn(classes: int, *, norm: str, width: int = 8) -> nn.Module:
    """Three convolutions, each at half the resolution of the one before, and a linear layer; `norm` is `batch` or `group`."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, width), (width, 2 * width), (2 * width, 4 * width)):
        layers += [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False), _norm(norm, outputs), nn.ReLU()]
    return nn.Sequential(_Centre(), *layers, nn.Flatten(), nn.Linear(4 * width * 16, classes))


def _norm(name: str, channels: int) -> nn.Module:
    return {"batch": nn.BatchNorm2d(channels), "group": nn.GroupNorm(4, channels)}[name]


class _Centre(nn.Module):
    """From [0, 1] to [-1, 1]."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images * 2 - 1
