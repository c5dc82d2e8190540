"""The head of a cluster: the dask scheduler and its dashboard. Started by `launch.embedded`, or by `datalocal head`."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from datalocal.errors import ClusterError
from datalocal.launch.process import read_message, say_ready

if TYPE_CHECKING:
    from datalocal.spec.cluster import Cluster
    from datalocal.spec.joining import Tls


@dataclass(frozen=True, slots=True, kw_only=True)
class Listening:
    """Where a head listens, and whom it lets in."""

    host: str = "127.0.0.1"
    port: int = 0
    dashboard: tuple[str, int] | None = None
    """Address of the pages; None: no pages."""
    tls: Tls | None = None
    cluster: Cluster | None = None
    """Whose workers may join; None: whoever knows the port (loopback)."""


def main() -> None:
    """Run until SIGTERM, or until the owner's end of stdin closes where the message says `hold`."""
    message = {"host": "127.0.0.1"} | read_message()
    pages = (message["host"], 0) if message["dashboard"] else None
    listening = Listening(host=message["host"], port=message["port"], dashboard=pages)
    try:
        run(listening, ready=say_ready, hold=message["hold"])
    except ClusterError as error:
        say_ready({"error": error.message, "hint": error.hint})
        sys.exit(1)


QUIET = {
    # dask measures its event loop 50 times a second: 4 % of a core on every idle node, for a figure of the dashboard.
    "distributed.admin.tick.interval": "1s",
    "distributed.worker.profile.enabled": False,  # tasks run in children of their own, where it sees nothing
}
"""Settings of dask by which nodes and head rest while there is nothing to do."""


def run(listening: Listening, *, ready: Callable[[Mapping[str, Any]], None], hold: bool = False) -> None:
    """Serve until SIGTERM (or, with `hold`, until the end of stdin); `ready` hears {scheduler, dashboard}.

    Raises ClusterError: a port in use, a certificate that cannot be read.
    """
    import dask

    dask.config.set(
        {
            "distributed.scheduler.work-stealing": False,  # a pinned task is where its data are
            "distributed.scheduler.worker-ttl": "60s",
            **QUIET,
            "distributed.admin.log-format": "%(asctime)s %(levelname)s %(name)s: %(message)s",
        }
    )
    asyncio.run(_serve(listening, ready, hold=hold))


async def _serve(listening: Listening, ready: Callable[[Mapping[str, Any]], None], *, hold: bool) -> None:
    from distributed import Scheduler

    from datalocal.execution.handshake import OPERATION, admission
    from datalocal.execution.security import security

    host, port = listening.dashboard or ("127.0.0.1", 0)  # also without the dashboard dask serves HTTP
    try:
        scheduler = Scheduler(
            host=listening.host,
            port=listening.port,
            dashboard=listening.dashboard is not None,
            dashboard_address=f"{host}:{port}",
            security=security(listening.tls),
        )
        if listening.cluster is not None:
            scheduler.handlers[OPERATION] = admission(listening.cluster)
        await scheduler
    except (OSError, RuntimeError) as error:  # dask wraps the one in the other
        raise ClusterError(
            f"the scheduler cannot listen on port {listening.port}: {error.__cause__ or error}",
            "another program uses the port: stop it, or leave `port` out for a free one",
        ) from None
    pages = f"http://{host}:{scheduler.services['dashboard'].port}/status" if listening.dashboard else ""
    asked = asked_to_stop(hold=hold)
    ready({"scheduler": scheduler.address, "dashboard": pages})
    await asked.wait()
    await scheduler.close(reason="cluster down")


def asked_to_stop(*, hold: bool) -> asyncio.Event:
    """Listen from now on: the event comes with SIGTERM or, with `hold`, when the owner is gone."""
    done = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, done.set)
    loop.add_signal_handler(signal.SIGINT, lambda: None)
    if hold:
        loop.add_reader(sys.stdin.fileno(), lambda: _at_end(loop, done))
    return done


def _at_end(loop: asyncio.AbstractEventLoop, done: asyncio.Event) -> None:
    import os

    if not os.read(sys.stdin.fileno(), 4096):
        loop.remove_reader(sys.stdin.fileno())
        done.set()


if __name__ == "__main__":
    main()
