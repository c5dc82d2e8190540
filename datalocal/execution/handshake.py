"""A worker asks the head before it joins: another version or an unknown name is refused at the door, with the reason.

A dask scheduler that was not started by `datalocal head` does not know the question; then the run compares versions itself.
"""

from __future__ import annotations

import asyncio
import difflib
import time
from collections.abc import Callable, Sequence
from typing import Any

from distributed.core import rpc
from distributed.security import Security

from datalocal.errors import ClusterError
from datalocal.execution.base import NodeFacts
from datalocal.execution.facts import comparable, own_versions
from datalocal.execution.security import check_scheduler, security
from datalocal.spec.cluster import Cluster
from datalocal.spec.joining import Tls

OPERATION = "datalocal_admission"
_RETRY_SECONDS = 1.0
_CONNECT_SECONDS = 5.0


def admission(cluster: Cluster) -> Callable[..., dict[str, str]]:
    """The head's answer to a worker that wants to join: {refused, hint}, empty when it may."""
    names = [node.name for node in cluster.nodes]

    def answer(cluster_name: str, node: str, python: str, version: str) -> dict[str, str]:
        refused, hint = refusal(node, (python, version), names, cluster_name, cluster.name)
        return {"refused": refused, "hint": hint}

    return answer


def refusal(
    node: str, versions: tuple[str, str], nodes: Sequence[str], their_cluster: str, our_cluster: str
) -> tuple[str, str]:
    """Why a worker of `versions` (Python, datalocal) may not join, and what to do; two empty strings when it may."""
    if their_cluster != our_cluster:
        return (
            f"{node} wants to join the cluster {their_cluster!r}, and this is the head of {our_cluster!r}",
            "start the worker with the cluster file of the head that it is to join",
        )
    if node not in nodes:
        near = difflib.get_close_matches(node, nodes, n=1)
        guess = f"did you mean {near[0]}? " if near else ""
        return f"the head's cluster file has no node {node!r}", guess + "Give the head and its workers the same file"
    theirs, ours = comparable(*versions), own_versions()
    if theirs != ours:
        return (
            f"{node} runs Python {theirs[0]} with datalocal {theirs[1]}, the head Python {ours[0]} with datalocal {ours[1]}",
            f"install datalocal {ours[1]} under Python {ours[0]} on {node} (its `environment` in the cluster file names "
            "another place for it), and start the worker again",
        )
    return "", ""


async def ask_for_admission(
    scheduler: str, tls: Tls | None, facts: NodeFacts, *, cluster: str, wait_seconds: float | None
) -> None:
    """Ask the scheduler whether this node may join. Raises ClusterError with its reason, or when nobody answers in time."""
    give_up = None if wait_seconds is None else time.monotonic() + wait_seconds
    arguments = (security(tls) or Security()).get_connection_args("worker")
    while True:
        try:
            async with rpc(scheduler, timeout=_CONNECT_SECONDS, connection_args=arguments) as head:
                question = getattr(head, OPERATION)
                answer: Any = await question(
                    cluster_name=cluster, node=facts.node, python=facts.python, version=facts.datalocal
                )
            break
        except (OSError, TimeoutError) as error:
            check_scheduler(scheduler, tls)  # it may have come up since, and be another one
            if give_up is not None and time.monotonic() > give_up:
                raise ClusterError(
                    f"no scheduler answers at {scheduler}: {error}",
                    "start the head first (`datalocal head`), or give the worker longer (--wait)",
                ) from None
            await asyncio.sleep(_RETRY_SECONDS)
    if isinstance(answer, dict) and answer.get("refused"):
        raise ClusterError(f"the head at {scheduler} refused the worker: {answer['refused']}", str(answer["hint"]))
