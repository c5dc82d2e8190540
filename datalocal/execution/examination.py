"""What `doctor` asks every node of a cluster before the first job: names, wires, disk, share, meters, as that node sees them."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import psutil

from datalocal.errors import DatalocalError
from datalocal.execution.worker import runtime
from datalocal.storage.counting import ByteCounter
from datalocal.storage.peer import Peer
from datalocal.storage.sink import HEAD

_TIMEOUT_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Examination:
    """One node's answers."""

    node: str
    host_name: str
    own_addresses: tuple[str, ...]
    """Of its interfaces."""
    resolved: Mapping[str, str]
    """Host name or address in the cluster file -> IP address as this node resolves it; empty: it does not."""
    unreachable: Mapping[str, str] = field(default_factory=dict)
    """Other node, or `head`: why its store (the run process) cannot be reached from here."""
    free_bytes: int
    cpus: int
    """That this process may use."""
    memory_bytes: int
    niceness: int
    meters: Mapping[str, str]
    """Meter -> empty when it is readable, else why not."""


def examine_node(stores: Mapping[str, str], sink: str, hosts: Sequence[str]) -> Examination:
    """Called on the node: resolve `hosts`, reach `stores` and `sink`, read what there is."""
    context = runtime().context
    process = psutil.Process()
    return Examination(
        node=context.name,
        host_name=socket.gethostname(),
        own_addresses=tuple(
            each.address
            for addresses in psutil.net_if_addrs().values()
            for each in addresses
            if each.family == socket.AF_INET
        ),
        resolved={host: _resolve(host) for host in hosts},
        unreachable=_unreachable(stores, sink),
        free_bytes=shutil.disk_usage(context.root).free,
        cpus=len(process.cpu_affinity()) if hasattr(process, "cpu_affinity") else os.cpu_count() or 1,
        memory_bytes=psutil.virtual_memory().total,
        niceness=process.nice(),
        meters=_meters(),
    )


def _resolve(host: str) -> str:
    try:
        return socket.gethostbyname(host)
    except OSError:
        return ""


def _unreachable(stores: Mapping[str, str], sink: str) -> dict[str, str]:
    context = runtime().context
    questions: dict[str, tuple[str, str, dict[str, str]]] = {
        name: (at, "datasets", {}) for name, at in stores.items() if name != context.name
    }
    questions[HEAD] = sink, "log", {"arm": "doctor", "task": context.name, "text": "reached"}
    found: dict[str, str] = {}
    for name, (at, kind, body) in questions.items():
        peer = Peer(
            name=name,
            location=at,
            token=context.token,
            me=context.name,
            counter=ByteCounter(),
            timeout_seconds=_TIMEOUT_SECONDS,
            tls=context.tls,
        )
        try:
            peer.ask(kind, body)
        except DatalocalError as error:
            found[name] = error.message
        finally:
            peer.close()
    return found


def _meters() -> dict[str, str]:
    reading = runtime().read_meters()
    found = {}
    for name, key in (("RAPL", "rapl"), ("NVML energy", "gpus")):
        reasons = sorted({str(entry["reason"]) for entry in reading[key] if entry["joules"] is None})
        readable = any(entry["joules"] is not None for entry in reading[key])
        found[name] = "" if readable else "; ".join(reasons) or "there is none"
    return found
