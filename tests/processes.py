"""Looking at processes that may end meanwhile: what is gone has no words, no children and no sockets."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import psutil

_T = TypeVar("_T")


def words(process: psutil.Process | None) -> list[str]:
    """Its command line."""
    return _ask(process, lambda there: there.cmdline(), [])


def below(process: psutil.Process | None) -> list[psutil.Process]:
    """All that it started, and what those started."""
    return _ask(process, lambda there: there.children(recursive=True), [])


def parent(process: psutil.Process) -> psutil.Process | None:
    """Who started it; None where either is gone."""
    return _ask(process, lambda there: there.parent(), None)


def runs(process: psutil.Process) -> bool:
    """Whether it is there and no zombie."""
    return _ask(process, lambda there: there.is_running() and there.status() != psutil.STATUS_ZOMBIE, False)


def listens_at(process: psutil.Process) -> list[tuple[str, int]]:
    """(IP address, port) of its listening sockets."""

    def listening(there: psutil.Process) -> list[tuple[str, int]]:
        connections = there.net_connections(kind="inet")
        return [(each.laddr.ip, each.laddr.port) for each in connections if each.status == psutil.CONN_LISTEN]

    return _ask(process, listening, [])


def _ask(process: psutil.Process | None, question: Callable[[psutil.Process], _T], gone: _T) -> _T:
    if process is None:
        return gone
    try:
        return question(process)
    except psutil.NoSuchProcess:  # a zombie, too
        return gone
