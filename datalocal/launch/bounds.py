"""A node's share of its machine: it steps back for what else runs there (the DataNode beside it)."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    from datalocal.spec.cluster import Node


def stay_within(node: Node, *, alone: bool) -> None:
    """Bound this process and all that it starts to the node's cores, nice and ionice. Call it before any thread is started.

    `alone`: the node is the only one of its host, so it can be kept on `cores` of its CPUs; several nodes would all be kept on
    the same ones. Never takes back what was already given up: a niceness above the node's stays.
    """
    process = psutil.Process()
    if node.nice > process.nice():
        process.nice(node.nice)
    if sys.platform != "linux":
        return
    if node.ionice == "low":
        process.ionice(psutil.IOPRIO_CLASS_BE, 7)
    elif node.ionice == "idle":
        process.ionice(psutil.IOPRIO_CLASS_IDLE)
    usable = sorted(os.sched_getaffinity(0))
    if alone and node.cores < len(usable):
        os.sched_setaffinity(0, usable[-node.cores :])
