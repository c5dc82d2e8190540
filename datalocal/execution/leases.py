"""GPUs and training slots are leased: two runs on one cluster do not meet on one, and two gangs never wait for each other.

A lease is a place in a dask semaphore that is named after what is leased. It lives in the scheduler, which takes it back when
the run that holds it is gone (after `distributed.scheduler.locks.lease-timeout`, 30 s).
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence

from distributed import Client, Semaphore

from datalocal.errors import RunCancelled
from datalocal.execution.base import Leased

log = logging.getLogger("datalocal.run")

_LOOK_SECONDS = 1.0
"""How long a cancelled run may go on waiting."""


class Leases:
    """What one run holds."""

    def __init__(self, client: Client, run: str) -> None:
        self._client, self._run = client, run

    @contextlib.contextmanager
    def hold(self, wanted: Sequence[Leased], cancelled: Callable[[], bool]) -> Iterator[None]:
        """Hold all of `wanted`. Everybody takes them in the same order, so that two runs never wait for each other.

        Raises RunCancelled.
        """
        with contextlib.ExitStack() as held:
            for each in sorted(set(wanted)):
                semaphore = Semaphore(
                    max_leases=each.at_a_time,
                    name=f"datalocal {each.what}, {each.at_a_time} at a time",
                    scheduler_rpc=self._client.scheduler,
                    loop=self._client.loop,
                )
                held.callback(semaphore.refresh_callback.stop)
                self._wait(semaphore, each, cancelled)
                held.callback(semaphore.release)
                self._client.set_metadata(["datalocal-lease", each.what], self._run)
            yield

    def _wait(self, semaphore: Semaphore, wanted: Leased, cancelled: Callable[[], bool]) -> None:
        told = False
        while not semaphore.acquire(timeout=_LOOK_SECONDS):
            if cancelled():
                raise RunCancelled(f"the run was cancelled while it waited for {wanted.what}")
            if not told:
                told = True
                holder = self._client.get_metadata(["datalocal-lease", wanted.what], "another run")
                log.info("waiting for %s, which %s holds", wanted.what, holder)
