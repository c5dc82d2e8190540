"""Which address and interface of this node the agents and ranks of a gang use."""

from __future__ import annotations

import socket

import psutil

from datalocal.tasks.model import TrainTask


def own_address(task: TrainTask) -> str | None:
    """The node's IP address as the others know it; None where no interface of this host has it."""
    host = task.rendezvous.rpartition(":")[0]
    if host.startswith("127."):  # all nodes on this host
        return host
    try:
        address = socket.gethostbyname(task.wiring.cluster.address(task.node))
    except OSError:
        return None
    return address if _interface(address) else None


def own_interface(task: TrainTask) -> str:
    """The interface that has this address; empty where torch is to find one."""
    address = own_address(task)
    return "" if address is None else "lo" if address.startswith("127.") else _interface(address)


def _interface(address: str) -> str:
    for name, addresses in psutil.net_if_addrs().items():
        if any(each.family == socket.AF_INET and each.address == address for each in addresses):
            return name
    return ""
