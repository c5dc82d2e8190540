"""How large a model's gradients are, before it trains: what decides whether training on the storage nodes pays."""

from __future__ import annotations

from pathlib import Path

from datalocal.spec.job import Train
from datalocal.tasks.code import load_target


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
    """About the bytes of one checkpoint: parameters, buffers, and what the optimizer keeps for each parameter.

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
    kept = [value for state in optimizer.state.values() for value in state.values() if torch.is_tensor(value)]
    tensors = [*model.parameters(), *model.buffers(), *kept]
    total: int = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    return total
