"""How large a model's gradients are, before it trains: what decides whether training on the storage nodes pays."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datalocal.errors import DatalocalError
from datalocal.spec.job import Train
from datalocal.tasks.code import load_target


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """Bytes of a model; None where they are not known before it trains."""

    gradient_bytes: int | None = None
    checkpoint_bytes: int | None = None


class SizesInChild:
    """The sizes, worked out by a process that steps back for others: user code never runs in the run's own process."""

    def __init__(self, train: Train, folder: Path, classes: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "datalocal.tasks.train.size"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        assert self._process.stdin is not None
        self._process.stdin.write(
            json.dumps({"train": train.model_dump(mode="json"), "folder": str(folder), "classes": classes})
        )
        self._process.stdin.close()
        self._process.stdin = None

    def result(self, timeout_seconds: float = 180.0) -> Sizes:
        """Wait for it. Whatever goes wrong there, the sizes are then not known."""
        try:
            out, _ = self._process.communicate(timeout=timeout_seconds)
            return Sizes(**json.loads(out.splitlines()[-1]))
        except (subprocess.TimeoutExpired, ValueError, IndexError, TypeError):
            self.close()
            return Sizes()

    def close(self) -> None:
        """End it, if nobody waited for it; returns when it is gone."""
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


def sizes(train: Train, folder: Path, classes: int) -> Sizes:
    """Both sizes, in this process. Raises TaskError when the model's module does not import."""
    return Sizes(
        gradient_bytes=gradient_bytes(train, folder, classes), checkpoint_bytes=checkpoint_bytes(train, folder, classes)
    )


def gradient_bytes(train: Train, folder: Path, classes: int) -> int | None:
    """Bytes of one step's gradients: all trainable parameters, in their own type. None for a script, which brings its own.

    The model is built on torch's `meta` device where it allows that, so it takes no memory. Raises TaskError when the
    model's module does not import.
    """
    if train.model is None:
        return None
    import torch

    build = load_target(train.model, folder)
    try:
        with torch.device("meta"):
            model = build(classes=classes, **train.arguments)
    except Exception:  # some models read weights or compute with their parameters while they are built
        model = build(classes=classes, **train.arguments)
    total: int = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    return total


def checkpoint_bytes(train: Train, folder: Path, classes: int) -> int | None:
    """The bytes of one checkpoint: parameters, buffers, and what the optimizer keeps for each parameter.

    None for a script, and where model or optimizer cannot be tried without memory: they take one step on torch's `meta`
    device.
    """
    if train.model is None:
        return None
    import torch

    build = load_target(train.model, folder)
    make = load_target(train.optimizer.name, folder)
    try:
        with torch.device("meta"):
            model = build(classes=classes, **train.arguments)
        optimizer = make(model.parameters(), **train.optimizer.arguments)
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
        optimizer.step()
    except Exception:  # neither model nor optimizer have to work without memory
        return None
    states = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    kept = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    total: int = sum(tensor.numel() * tensor.element_size() for tensor in (*model.state_dict().values(), *kept))
    if total > _LARGEST_TRIED_BYTES:
        return total
    memory = io.BytesIO()
    torch.save(_zeros(states) | {"extra": {}, "epoch": 0, "step": 0, "rng": 0}, memory)
    return int(memory.tell())


_LARGEST_TRIED_BYTES = 256 << 20
"""Beyond that what surrounds the tensors in a file does not matter."""


def _zeros(value: Any) -> Any:
    """The same structure with zeros in place of tensors without memory."""
    import torch

    if torch.is_tensor(value):
        return torch.zeros(value.shape, dtype=value.dtype)
    if isinstance(value, Mapping):
        return {key: _zeros(part) for key, part in value.items()}
    return [_zeros(part) for part in value] if isinstance(value, list | tuple) else value


def main() -> None:
    """{train, folder, classes} as JSON on stdin; the sizes as JSON on the last line of stdout."""
    os.nice(10)
    asked = json.load(sys.stdin)
    try:
        found = sizes(Train.model_validate(asked["train"]), Path(asked["folder"]), asked["classes"])
    except DatalocalError:
        found = Sizes()
    line = {"gradient_bytes": found.gradient_bytes, "checkpoint_bytes": found.checkpoint_bytes}
    sys.stdout.write("\n" + json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
