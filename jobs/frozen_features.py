"""A small frozen backbone in three stages, and the head that learns on what it gives.

Nobody trained the backbone: its weights are random, drawn from the pipeline's seed. Random convolutions tell photographs apart
well enough to show what a cut ships. A real backbone would read its weights from a file (`weights:` of its stage).
"""

from __future__ import annotations

import torch
from torch import nn


def stem(*, width: int = 16) -> nn.Module:
    """[n, 3, S, S] in [0, 1] to [n, width, S / 4, S / 4]."""
    return nn.Sequential(_Centre(), nn.Conv2d(3, width, 5, stride=4, padding=2), nn.ReLU())


def trunk(*, width: int = 16) -> nn.Module:
    """Two convolutions, each at half the resolution and twice the width: [n, 4 width, S / 16, S / 16]."""
    return nn.Sequential(
        nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(2 * width, 4 * width, 3, stride=2, padding=1),
        nn.ReLU(),
    )


def pool(*, side: int = 2) -> nn.Module:
    """Means over `side` x `side` parts of the picture, of mean 0 and variance 1 for each image: [n, channels side^2]."""
    return nn.Sequential(nn.AdaptiveAvgPool2d(side), nn.Flatten(), _Normal())


def head(classes: int, *, features: int = 256) -> nn.Module:
    """All that learns."""
    return nn.Linear(features, classes)


class _Centre(nn.Module):
    """From [0, 1] to [-1, 1]."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images * 2 - 1


class _Normal(nn.Module):
    """Layer normalisation without parameters."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return nn.functional.layer_norm(features, features.shape[1:])
