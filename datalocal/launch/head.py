"""The head of a cluster: the dask scheduler, on one address only. Started by `launch.embedded`."""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import Any

from datalocal.launch.process import read_message, say_ready


def main() -> None:
    """Run until SIGTERM, or until the owner's end of stdin closes where the message says `hold`."""
    message = {"host": "127.0.0.1"} | read_message()

    import dask

    dask.config.set(
        {
            "distributed.scheduler.work-stealing": False,  # a pinned task is where its data are
            "distributed.scheduler.worker-ttl": "60s",
            "distributed.admin.log-format": "%(asctime)s %(levelname)s %(name)s: %(message)s",
        }
    )
    asyncio.run(_serve(message))


async def _serve(message: dict[str, Any]) -> None:
    from distributed import Scheduler

    dashboard = bool(message["dashboard"])
    try:
        scheduler = await Scheduler(
            host=message["host"],
            port=message["port"],
            dashboard=dashboard,
            dashboard_address=f"{message['host']}:0",  # also without the dashboard dask serves HTTP, by default on every interface
        )
    except (OSError, RuntimeError) as error:  # dask wraps the one in the other
        say_ready(
            {
                "error": f"the scheduler cannot listen on port {message['port']}: {error.__cause__ or error}",
                "hint": "another program uses the port: stop it, or leave `port` out for a free one",
            }
        )
        sys.exit(1)
    url = f"http://{message['host']}:{scheduler.services['dashboard'].port}/status" if dashboard else ""
    say_ready({"scheduler": scheduler.address, "dashboard": url})
    await until_told(hold=message["hold"])
    await scheduler.close(reason="cluster down")


async def until_told(*, hold: bool) -> None:
    """Wait for SIGTERM, or for the owner to be gone."""
    done = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, done.set)
    loop.add_signal_handler(signal.SIGINT, lambda: None)
    if hold:
        loop.add_reader(sys.stdin.fileno(), lambda: _at_end(loop, done))
    await done.wait()


def _at_end(loop: asyncio.AbstractEventLoop, done: asyncio.Event) -> None:
    import os

    if not os.read(sys.stdin.fileno(), 4096):
        loop.remove_reader(sys.stdin.fileno())
        done.set()


if __name__ == "__main__":
    main()
