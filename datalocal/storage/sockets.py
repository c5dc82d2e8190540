"""The TCP sockets of this process, and what the kernel counted on each: the witness for who really sent the bytes."""

from __future__ import annotations

import os
import socket
import struct
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


def _endpoint(address: Any) -> Endpoint:
    return str(address[0]).removeprefix("::ffff:"), int(address[1])
