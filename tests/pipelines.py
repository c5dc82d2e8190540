"""Jobs with a pipeline: a small frozen network and a head, with code of their own."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import yaml

SIDE = 32

CODE = textwrap.dedent(
    """
    import itertools
    import torch
    from torch import nn

    count = itertools.count()


    def stem(width=8):
        return nn.Sequential(nn.Conv2d(3, width, 3, stride=4), nn.BatchNorm2d(width), nn.ReLU())


    def pool():
        return nn.Sequential(nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Dropout(0.5))


    def head(classes, features=128):
        return nn.Linear(features, classes)


    def flip(images, noise=0.5):
        return images + noise * torch.randn_like(images)


    class Restless(nn.Module):
        '''Other weights each time, whatever the seed.'''
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.full((1,), float(next(count))))

        def forward(self, images):
            return images.flatten(1) * self.weight


    def flat():
        return nn.Flatten(0)
    """
)


def job_file(folder: Path, *, train: dict[str, Any] | None = None, **pipeline: Any) -> Path:
    """A job on `pictures` with the stages `stem` and `pool`; `pipeline` replaces keys of its section."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "frozen_code.py").write_text(CODE, encoding="utf-8")
    content = {
        "name": "frozen-job",
        "dataset": "pictures",
        "seed": 7,
        "pipeline": {
            "image_size": SIDE,
            "frozen": [
                {"name": "stem", "module": "frozen_code:stem"},
                {"name": "pool", "module": "frozen_code:pool"},
            ],
            **pipeline,
        },
        "train": {
            "model": "frozen_code:head",
            "epochs": 2,
            "batch": 16,
            "validation": {"fraction": 0.25},
            "device": "cpu",
            **(train or {}),
        },
    }
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path
