"""Refuse a loss that is NaN or infinite, without making the GPU wait for the answer."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

import torch


class LossCheck:
    """Checks losses in order. One that lies on a GPU is checked when the next one comes, or by `check_all`.

    `failed` makes the error from a cause and a hint.
    """

    def __init__(self, failed: Callable[[str, str], Exception]) -> None:
        self._failed = failed
        self._waiting: deque[tuple[torch.Tensor, torch.cuda.Event, int, int]] = deque()
        self.last: float | None = None
        """The last loss that was checked."""

    def add(self, loss: torch.Tensor | float, epoch: int, step: int) -> None:
        """Check the loss of one step, or take it down for checking."""
        if isinstance(loss, torch.Tensor) and loss.is_cuda:
            host = torch.empty((), dtype=loss.dtype, pin_memory=True)
            host.copy_(loss.detach(), non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch does not annotate it
            event.record()
            self.check_all()
            self._waiting.append((host, event, epoch, step))
        else:
            self._check(float(loss.detach()) if isinstance(loss, torch.Tensor) else float(loss), epoch, step)

    def check_all(self) -> None:
        """Check every loss that was taken down."""
        while self._waiting:
            host, event, epoch, step = self._waiting.popleft()
            event.synchronize()
            self._check(float(host), epoch, step)

    def _check(self, loss: float, epoch: int, step: int) -> None:
        if not math.isfinite(loss):
            raise self._failed(
                f"the loss is {loss} in epoch {epoch}, step {step}",
                "lower the learning rate, or look for bad values in the input",
            )
        self.last = loss
