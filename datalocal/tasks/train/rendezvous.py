"""The store at which the agents of a gang meet. It lives in the run process, so that no node's death takes it away."""

from __future__ import annotations

import socket
from datetime import timedelta
from typing import Any


class RendezvousStore:
    """A torch TCPStore on a free port of `host`; agents are only its clients. One serves any number of launches.

    `host` stays the loopback address unless the nodes are other machines: the store knows no token.
    """

    def __init__(self, host: str = "127.0.0.1") -> None:
        from torch.distributed import TCPStore  # type: ignore[attr-defined]  # public, yet not in torch's __all__

        listener = socket.create_server((host, 0))  # torch itself would listen on every address of the machine
        port = int(listener.getsockname()[1])
        self._store: Any = TCPStore(
            host,
            port,
            is_master=True,
            wait_for_workers=False,
            timeout=timedelta(seconds=60),
            master_listen_fd=listener.detach(),
        )
        self.endpoint = f"{host}:{port}"

    def close(self) -> None:
        """Stop serving; agents that still need it fail within a second."""
        self._store = None
