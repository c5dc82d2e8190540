"""TCP sockets and what the kernel counted on each, of this process and of its host: the witness for who sent the bytes."""

from __future__ import annotations

import os
import re
import socket
import struct
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

Endpoint: TypeAlias = tuple[str, int]
"""IP address and port."""

_INFO_BYTES = 256
_RECEIVED, _SENT, _SENT_AGAIN = 128, 200, 208  # offsets in Linux's struct tcp_info (the last two since 4.19)


@dataclass(frozen=True, slots=True, kw_only=True)
class SocketBytes:
    """Payload bytes of one connected socket so far."""

    sent: int
    """Without what was sent again."""
    received: int


def tcp_sockets() -> dict[tuple[Endpoint, Endpoint], SocketBytes]:
    """(own end, other end) -> payload bytes, of every connected TCP socket of this process.

    Linux only; elsewhere, or where the kernel is older than 4.19, the dict is empty.
    """
    found: dict[tuple[Endpoint, Endpoint], SocketBytes] = {}
    descriptors = Path("/proc/self/fd")
    for name in os.listdir(descriptors) if descriptors.is_dir() else []:  # noqa: PTH208  # names only, no Path per entry
        try:
            if not os.readlink(descriptors / name).startswith("socket:"):  # noqa: PTH115
                continue
            with socket.socket(fileno=os.dup(int(name))) as own:
                if own.type != socket.SOCK_STREAM or own.family not in (socket.AF_INET, socket.AF_INET6):
                    continue
                info = own.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _INFO_BYTES)
                if len(info) < _SENT_AGAIN + 8:
                    continue
                received, sent, again = (struct.unpack_from("Q", info, at)[0] for at in (_RECEIVED, _SENT, _SENT_AGAIN))
                ends = _endpoint(own.getsockname()), _endpoint(own.getpeername())
                found[ends] = SocketBytes(sent=sent - again, received=received)
        except OSError:  # closed meanwhile, or listening and not connected
            continue
    return found


def host_sockets() -> dict[tuple[Endpoint, Endpoint], SocketBytes]:
    """The same of every process in this host's (or network namespace's) network, as `ss` tells it.

    Empty where there is no `ss` (package iproute2).
    """
    command = ["ss", "-tinHO"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return from_ss(told.splitlines())


_SS = re.compile(r"^\S+\s+\d+\s+\d+\s+(?P<own>\S+):(?P<port>\d+)\s+(?P<peer>\S+):(?P<peer_port>\d+)\s")


def from_ss(lines: Iterable[str]) -> dict[tuple[Endpoint, Endpoint], SocketBytes]:
    """What `ss -tinHO` printed; `ss` leaves a count of 0 out."""
    found = {}
    for line in lines:
        match = _SS.match(line)
        if match is None:
            continue
        counts = dict(re.findall(r" (bytes_\w+):(\d+)", line))
        ends = (_plain(match["own"]), int(match["port"])), (_plain(match["peer"]), int(match["peer_port"]))
        found[ends] = SocketBytes(
            sent=int(counts.get("bytes_sent", 0)) - int(counts.get("bytes_retrans", 0)),
            received=int(counts.get("bytes_received", 0)),
        )
    return found


def _plain(address: str) -> str:
    return address.strip("[]").removeprefix("::ffff:")


def _endpoint(address: Any) -> Endpoint:
    return str(address[0]).removeprefix("::ffff:"), int(address[1])
