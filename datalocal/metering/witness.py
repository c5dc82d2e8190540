"""Counters of bytes that datalocal does not write: the kernel's per interface, the DataNode's trace and its JMX."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import psutil

from datalocal.errors import DatalocalError
from datalocal.metering.jmx import jmx
from datalocal.metering.trace import TraceFile

_JMX_SECONDS = 1.2
"""How far JMX may lag behind, with a metrics period of 1 s."""
_JMX_KEYS = ("BytesRead", "RemoteBytesRead", "BytesWritten", "RemoteBytesWritten", "ReadBlockOpNumOps")


Sockets: TypeAlias = Mapping[tuple[tuple[str, int], tuple[str, int]], int]
"""(own end, other end) -> bytes received so far."""


class SocketTotals:
    """Bytes received on sockets that come and go: what a closed one had counted when it was last seen stays in the sum."""

    def __init__(self, look: Callable[[], Sockets]) -> None:
        self._look = look
        self._known: dict[tuple[tuple[str, int], tuple[str, int]], int] = {}
        self._total = 0

    def read(self) -> int:
        """The total up to now."""
        now = dict(self._look())
        for ends, count in now.items():
            before = self._known.get(ends, 0)
            self._total += count - before if count >= before else count  # fewer: the same ports, another connection
        self._known = now
        return self._total


class Witnesses:
    """The witnesses of one node. `datanode` is (address, port of its HTTP server) of the DataNode beside it, if there is one.

    `control` finds the sockets on which services talk to this host: dask's with the head, the DataNode's with its NameNode;
    `unseen` is why it does not find the latter. `authorization` makes the header that the DataNode's HTTP server asks for.
    """

    def __init__(
        self,
        *,
        control: Callable[[], Sockets],
        datanode: tuple[str, int] | None = None,
        trace: Path | None = None,
        unseen: str = "",
        authorization: Callable[[], str] = str,
    ) -> None:
        self._control, self._datanode = SocketTotals(control), datanode
        self._trace = TraceFile(trace) if trace is not None else None
        self._unseen, self._authorization = unseen, authorization

    def read(self) -> dict[str, Any]:
        """Cumulative counters now: {interfaces, control, trace, jmx, missing: {witness: why}}; one that is away is None."""
        missing = {"what the NameNode tells the DataNode": self._unseen} if self._unseen else {}
        counted = None
        if self._datanode is not None:
            time.sleep(_JMX_SECONDS)
            counted = self._read_jmx(missing)
        else:
            missing["jmx"] = missing["clienttrace"] = "no DataNode beside this node"
        return {
            "interfaces": {
                name: {"received": counts.bytes_recv, "packets": counts.packets_recv, "sent": counts.bytes_sent}
                for name, counts in psutil.net_io_counters(pernic=True, nowrap=False).items()
            },
            "control": self._control.read(),
            "trace": self._read_trace(missing),
            "jmx": counted,
            "missing": missing,
        }

    def _read_trace(self, missing: dict[str, str]) -> dict[str, Any] | None:
        if self._trace is None:
            missing.setdefault("clienttrace", "its file is not known: `storage.datanode_log` in the cluster config")
            return None
        try:
            return copy.deepcopy(self._trace.read())
        except OSError as error:
            missing.setdefault("clienttrace", f"{error.strerror or error}: {error.filename}")
            return None

    def _read_jmx(self, missing: dict[str, str]) -> dict[str, int] | None:
        assert self._datanode is not None
        host, port = self._datanode
        try:
            name = "service=DataNode,name=DataNodeActivity-*"
            bean = jmx(f"http://{host}:{port}", name, authorization=self._authorization())
        except (OSError, ValueError, KeyError, DatalocalError) as error:
            missing["jmx"] = f"the DataNode at {host}:{port} does not answer: {error}"
            return None
        if bean is None:
            missing["jmx"] = f"the DataNode at {host}:{port} has no activity bean yet"
            return None
        return {key: int(bean[key]) for key in _JMX_KEYS if key in bean}
