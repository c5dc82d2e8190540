"""The store at which the agents of a gang meet. It lives in the run process, so that no node's death takes it away."""

from __future__ import annotations

import socket
from datetime import timedelta
from typing import Any


def listen_on_own_address_only() -> None:
    """Have torch's elastic agent, in this process, bind the ranks' store to the agent's own address.

    torch 2.6 to 2.15 binds it to every address of the machine and offers no setting; the store knows no token. A release
    without this method keeps its own way, and the test of what listens tells.
    """
    from torch.distributed.elastic.rendezvous.dynamic_rendezvous import DynamicRendezvousHandler

    def create(_handler: Any, master_addr: str, master_port: int) -> Any:
        return bound_store(master_addr, master_port, multi_tenant=True)

    if hasattr(DynamicRendezvousHandler, "_create_tcp_store_server"):
        DynamicRendezvousHandler._create_tcp_store_server = create  # type: ignore[assignment]  # untyped there


def bound_store(host: str, port: int = 0, **options: Any) -> Any:
    """A TCPStore server that listens on `host` only; torch itself would listen on every address of the machine."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # public, yet not in torch's __all__

    listener = socket.create_server((host, port))
    taken = int(listener.getsockname()[1])
    return TCPStore(host, taken, is_master=True, master_listen_fd=listener.detach(), **options)


class RendezvousStore:
    """A torch TCPStore on a free port of `host`; agents are only its clients. One serves any number of launches.

    `host` stays the loopback address unless the nodes are other machines: the store knows no token.
    """

    def __init__(self, host: str = "127.0.0.1") -> None:
        self._store: Any = bound_store(host, wait_for_workers=False, timeout=timedelta(seconds=60))
        self.endpoint = f"{host}:{self._store.port}"

    def close(self) -> None:
        """Stop serving; agents that still need it fail within a second."""
        self._store = None
