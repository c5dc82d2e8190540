"""GPUs are leased: two runs on one cluster do not meet on one.

A lease is a dask semaphore of one, named after the GPU's UUID. It lives in the scheduler, which takes it back when the run that
holds it is gone (after `distributed.scheduler.locks.lease-timeout`, 30 s).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence

from distributed import Client, Semaphore

from datalocal.errors import RunCancelled

log = logging.getLogger("datalocal.run")

_LOOK_SECONDS = 1.0
"""How long a cancelled run may go on waiting."""


class Leases:
    """What one run holds."""

    def __init__(self, client: Client, run: str) -> None:
        self._client, self._run = client, run

    @contextlib.contextmanager
    def hold(self, gpus: Sequence[str], cancelled: Callable[[], bool]) -> Iterator[None]:
        """Hold all of `gpus`, by UUID. Everybody takes them in the same order, so that two runs never wait for each other.

        Raises RunCancelled.
        """
        with contextlib.ExitStack() as held:
            for gpu in sorted(set(gpus)):
                semaphore = Semaphore(
                    max_leases=1,
                    name=f"datalocal-gpu-{gpu}",
                    scheduler_rpc=self._client.scheduler,
                    loop=self._client.loop,
                )
                held.callback(semaphore.refresh_callback.stop)
                self._wait(semaphore, gpu, cancelled)
                held.callback(semaphore.release)
                self._client.set_metadata(["datalocal-gpu", gpu], self._run)
            yield

    def _wait(self, semaphore: Semaphore, gpu: str, cancelled: Callable[[], bool]) -> None:
        told = False
        while not semaphore.acquire(timeout=_LOOK_SECONDS):
            if cancelled():
                raise RunCancelled("the run was cancelled while it waited for a GPU")
            if not told:
                told = True
                holder = self._client.get_metadata(["datalocal-gpu", gpu], "another run")
                log.info("waiting for GPU %s, which %s holds", gpu, holder)
