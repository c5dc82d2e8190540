"""What a node says of itself, and the handshake that compares it before anything is sent."""

from __future__ import annotations

import os
import platform
import socket
from collections.abc import Mapping
from pathlib import Path

import datalocal
from datalocal.errors import ClusterError
from datalocal.execution.base import NodeFacts

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def host_id() -> str:
    """Identity of the physical host: the kernel's boot id, which its containers and namespaces share."""
    try:
        return f"host-{_BOOT_ID.read_text(encoding='ascii').strip()[:8]}"
    except OSError:  # not Linux: one kernel per host name is the best there is
        return f"host-{socket.gethostname()}"


def list_gpus() -> tuple[dict[str, object], ...]:
    """[{uuid, name, memory_bytes}] as NVML lists them; empty where there is no driver."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return ()
    try:
        handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
        return tuple(
            {
                "uuid": str(pynvml.nvmlDeviceGetUUID(handle)),
                "name": str(pynvml.nvmlDeviceGetName(handle)),
                "memory_bytes": int(pynvml.nvmlDeviceGetMemoryInfo(handle).total),
            }
            for handle in handles
        )
    except pynvml.NVMLError:  # a GPU that fell off the bus is no slot
        return ()
    finally:
        pynvml.nvmlShutdown()


def own_facts(node: str, *, cores: int, store: str, gpus: bool) -> NodeFacts:
    """The facts of this process as node `node`."""
    return NodeFacts(
        node=node,
        host=host_id(),
        pid=os.getpid(),
        python=platform.python_version(),
        datalocal=datalocal.__version__,
        cores=cores,
        store=store,
        gpus=list_gpus() if gpus else (),
    )


def check_versions(facts: Mapping[str, NodeFacts]) -> None:
    """Refuse nodes whose Python (major.minor) or datalocal differs from ours. Raises ClusterError naming both."""
    ours = own_versions()
    for node in sorted(facts):
        theirs = comparable(facts[node].python, facts[node].datalocal)
        if theirs != ours:
            raise ClusterError(
                f"{node} runs Python {theirs[0]} with datalocal {theirs[1]}, "
                f"this client Python {ours[0]} with datalocal {ours[1]}",
                f"install datalocal {ours[1]} under Python {ours[0]} on {node} and restart its worker, "
                "or submit from a matching client",
            )


def own_versions() -> tuple[str, str]:
    """Python (major.minor) and datalocal of this process."""
    return comparable(platform.python_version(), datalocal.__version__)


def comparable(python: str, version: str) -> tuple[str, str]:
    """What has to be the same on both sides: Python's major.minor, and datalocal's version `version`."""
    return ".".join(python.split(".")[:2]), version
