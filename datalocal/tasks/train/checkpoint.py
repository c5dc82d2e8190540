"""What a checkpoint holds and how it becomes bytes: model, optimizer, position, and whatever else has a state."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any, Protocol

import pyarrow as pa
import torch
from torch.nn.parallel import DistributedDataParallel


class Stateful(Protocol):
    """Anything with the state protocol of torch: optimizers, schedulers, scalers, the user's own."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any: ...


def checkpoint_name(launch: int, epoch: int, step: int) -> str:
    """`step` counts within the whole epoch; at its end it is the number of steps."""
    return f"l{launch}-e{epoch}-s{step}"


def bare(model: torch.nn.Module) -> torch.nn.Module:
    """The model inside DDP's wrapper: its parameter names do not depend on the number of ranks."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def dump(
    *,
    model: torch.nn.Module,
    optimizer: Stateful | None,
    extra: Mapping[str, Stateful],
    epoch: int,
    step: int,
    seed: int,
) -> pa.Buffer:
    """A checkpoint as bytes. `rng` is the seed from which generators are set anew after it, on every rank."""
    content = {
        "model": bare(model).state_dict(),
        "optimizer": optimizer.state_dict() if optimizer else None,
        "extra": {name: part.state_dict() for name, part in extra.items()},
        "epoch": epoch,
        "step": step,
        "rng": seed,
    }
    memory = io.BytesIO()
    torch.save(content, memory)
    return pa.py_buffer(memory.getbuffer())


def dump_weights(model: torch.nn.Module) -> pa.Buffer:
    """The model's state alone, for `torch.load(file, weights_only=True)`."""
    memory = io.BytesIO()
    torch.save(bare(model).state_dict(), memory)
    return pa.py_buffer(memory.getbuffer())


def restore(
    content: pa.Buffer,
    *,
    model: torch.nn.Module,
    optimizer: Stateful | None,
    extra: Mapping[str, Stateful],
    device: torch.device,
) -> tuple[int, int]:
    """Load a checkpoint into these objects; returns its epoch and step. Raises ValueError when it does not fit them."""
    # From this run's own directory through the token-protected sink, or with the hash it had there; `extra` may hold any object.
    state = torch.load(io.BytesIO(content), map_location=device, weights_only=False)
    try:
        bare(model).load_state_dict(state["model"])
    except RuntimeError as mismatch:
        raise ValueError(f"the checkpoint's parameters do not fit the model: {mismatch}") from None
    if optimizer is not None and state["optimizer"] is not None:
        optimizer.load_state_dict(state["optimizer"])
    for name, part in extra.items():
        if name not in state["extra"]:
            raise ValueError(
                f"the checkpoint holds no state {name!r}; it has {', '.join(sorted(state['extra'])) or 'none'}"
            )
        part.load_state_dict(state["extra"][name])
    return int(state["epoch"]), int(state["step"])
