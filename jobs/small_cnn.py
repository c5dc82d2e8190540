"""A small convolutional network for the sample jobs: what a user's own model looks like.

`model` in the job file names a function (classes, **arguments) -> torch.nn.Module; the arguments come from
`train.arguments`. The module gets float images [n, 3, height, width] in [0, 1] and returns [n, classes].

GroupNorm instead of BatchNorm: each node sees its own shards, and BatchNorm's statistics would differ from node to node.
About 330,000 parameters, so every step has 1.3 MB of gradients to average: small, but large enough that the bytes on the wire can
be held against the formula.
"""

from __future__ import annotations

import torch
from torch import nn


def small_cnn(classes: int, *, width: int = 24, stem_stride: int = 4) -> nn.Module:
    """Four convolutions, each at half the resolution and twice the width of the one before, then two linear layers.

    `stem_stride` is 4 for images of about 96 pixels, and 2 for MNIST's 28.
    """
    return nn.Sequential(
        _Centre(),
        *_block(3, width, kernel=5, stride=stem_stride),
        *_block(width, 2 * width, kernel=3, stride=2),
        *_block(2 * width, 4 * width, kernel=3, stride=2),
        *_block(4 * width, 8 * width, kernel=3, stride=2),
        nn.AdaptiveAvgPool2d(3),
        nn.Flatten(),
        nn.Linear(8 * width * 9, 64),
        nn.ReLU(),
        nn.Linear(64, classes),
    )


def _block(inputs: int, outputs: int, *, kernel: int, stride: int) -> tuple[nn.Module, ...]:
    return (
        nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False),
        nn.GroupNorm(8, outputs),
        nn.ReLU(inplace=True),
    )


class _Centre(nn.Module):
    """From [0, 1] to [-1, 1]."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images * 2 - 1
