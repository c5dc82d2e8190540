"""Bytes of gradient synchronisation, three ways: what DDP hands over, what the kernel sent, what theory says.

*logical*: bytes of the gradient buckets, counted by a hook around DDP's own all-reduce.
*payload*: TCP_INFO of this process's sockets to other ranks, bytes sent minus bytes sent again.
*theory*: a ring all-reduce sends 2 (N - 1) / N times the logical bytes from every rank.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
import torch.distributed as dist
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

from datalocal.storage.sockets import Endpoint, tcp_sockets

if TYPE_CHECKING:
    from torch._C._distributed_c10d import GradBucket

Hook: TypeAlias = "Callable[[Any, GradBucket], torch.futures.Future[torch.Tensor]]"


class GradientMeter:
    """Counts one rank's gradient bytes while it is running; make it after DDP is constructed, on all ranks together.

    What construction sent (parameters, buckets) is left out, and so is what happens between `pause` and `resume`.
    """

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world = rank, world
        self.logical_bytes = 0
        self.logical_known = False
        self.payload_bytes: Counter[int] = Counter()
        self.steps = 0
        dist.barrier()  # whatever backend: now its connections stand
        mine = sorted({own for own, _ in tcp_sockets()})
        everyone: list[Any] = [None] * world
        dist.all_gather_object(everyone, mine)
        self._rank_at: Mapping[Endpoint, int] = {
            (str(end[0]), int(end[1])): other for other, ends in enumerate(everyone) if other != rank for end in ends
        }
        self._running = False
        self._begin: Counter[int] = Counter()
        self._counted_logical_bytes = 0

    def hook_into(self, model: DistributedDataParallel, hook: Hook | None = None, state: object = None) -> None:
        """Count the buckets that DDP hands to `hook`, by default its own all-reduce."""
        inner: Hook = hook or default_hooks.allreduce_hook

        def counted(state: object, bucket: GradBucket) -> torch.futures.Future[torch.Tensor]:
            buffer = bucket.buffer()
            self._counted_logical_bytes += buffer.numel() * buffer.element_size()
            return inner(state, bucket)

        counted.__annotations__.clear()  # DDP compares them with the types; under `from __future__` they are texts
        model.register_comm_hook(state, counted)
        self.logical_known = True

    def resume(self) -> None:
        """Count from here on."""
        if not self._running:
            self._running, self._begin = True, self._sent()
            self._counted_logical_bytes = 0

    def pause(self) -> None:
        """Stop counting: what follows (buffers, the user's own collectives after an epoch) is not gradients."""
        if self._running:
            self._running = False
            self.payload_bytes.update(self._sent() - self._begin)
            self.logical_bytes += self._counted_logical_bytes

    def figures(self) -> dict[str, float]:
        """logical_bytes, payload_bytes, theory_bytes, steps and step_bytes (logical, per step) of this rank."""
        figures: dict[str, float] = {"payload_bytes": self.payload_bytes.total(), "steps": self.steps}
        if self.logical_known:
            figures["logical_bytes"] = self.logical_bytes
            figures["theory_bytes"] = 2 * (self.world - 1) / self.world * self.logical_bytes
            figures["step_bytes"] = self.logical_bytes / self.steps if self.steps else 0
        return figures

    def _sent(self) -> Counter[int]:
        sent: Counter[int] = Counter()
        for (_, peer), count in tcp_sockets().items():
            if peer in self._rank_at:
                sent[self._rank_at[peer]] += count.sent
        return sent
