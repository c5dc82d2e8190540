"""Our training loop: `train: {model: module:name}`. It uses the session as any script can, and nothing else of the run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from datalocal import training
from datalocal.errors import TaskError
from datalocal.spec.job import Train
from datalocal.tasks.model import Cut
from datalocal.tasks.train.inputs import Inputs
from datalocal.tasks.train.replicas import BuffersInTurns


class LoopSession(Protocol):
    """What building the parts of a loop needs of a session."""

    spec: Train
    classes: int
    node: str
    device: torch.device
    folder: Path | None
    cut: Cut | None

    def load(self, target: str) -> Any: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """Model, loss and optimizer of a job, and what makes the model's inputs of a batch."""

    model: torch.nn.Module
    inputs: Inputs
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    optimizer: torch.optim.Optimizer


def build(session: LoopSession) -> Parts:
    """Make what the job names. Raises TaskError when a target does not give what it must."""
    spec = session.spec
    assert spec.model is not None, "a job without a model has a script"
    model = session.load(spec.model)(classes=session.classes, **spec.arguments)
    if not isinstance(model, torch.nn.Module):
        raise TaskError(
            session.node,
            "train",
            f"{spec.model} returned {type(model).__name__}",
            hint="it must return a torch.nn.Module",
        )
    model = model.to(session.device)
    optimizer = session.load(spec.optimizer.name)(model.parameters(), **spec.optimizer.arguments)
    return Parts(model=model, inputs=Inputs(session), loss=session.load(spec.loss), optimizer=optimizer)


def run_loop(session: training.Session) -> None:
    """Train on this rank, epoch after epoch, and validate after each."""
    parts = build(session)
    parallel = session.wrap(parts.model)
    session.attach(model=parts.model, optimizer=parts.optimizer)
    for epoch in session.epochs():
        parts.model.train()
        for batch in epoch:
            parts.optimizer.zero_grad(set_to_none=True)
            loss = parts.loss(parallel(parts.inputs(batch.images, training_samples=True)), batch.labels)
            torch.autograd.backward(loss * batch.weight)
            parts.optimizer.step()
            session.step_done(loss)
        validate([session], parts)


def run_loop_in_turns(sessions: Sequence[training.Session]) -> None:
    """The same for all ranks of a gang in one process, on one model: their gradients add up to what DDP's mean would be.

    Every rank's batch is normalised by its own statistics, and running statistics are those that real ranks would average.
    """
    first = sessions[0]
    parts = build(first)
    for session in sessions:
        session.attach(model=parts.model, optimizer=parts.optimizer)
    buffers = BuffersInTurns(parts.model)
    for epochs in zip(*(session.epochs() for session in sessions), strict=True):
        parts.model.train()
        for batches in zip(*epochs, strict=True):
            parts.optimizer.zero_grad(set_to_none=True)
            losses = []
            with buffers.step():
                for batch in batches:
                    with buffers.turn(batch.samples):
                        outputs = parts.model(parts.inputs(batch.images, training_samples=True))
                    loss = parts.loss(outputs, batch.labels)
                    torch.autograd.backward(loss * (batch.weight / len(sessions)))
                    losses.append(loss.detach())
            parts.optimizer.step()
            for session, loss in zip(sessions, losses, strict=True):
                session.step_done(loss)
        validate(sessions, parts)


def validate(sessions: Sequence[training.Session], parts: Parts) -> None:
    """Evaluate the ranks' validation samples and report how many were classified rightly."""
    parts.model.eval()
    for session in sessions:
        if not session.validates:
            continue
        correct = total = 0
        loss_sum = 0.0
        with torch.no_grad():
            for batch in session.validation():
                outputs = parts.model(parts.inputs(batch.images, training_samples=False))
                correct += int((outputs.argmax(dim=1) == batch.labels).sum())
                loss_sum += float(parts.loss(outputs, batch.labels)) * batch.samples
                total += batch.samples
        session.report_validation(correct, total, loss_sum)
