"""Minimum-cost flow in a process of its own: `python -m datalocal.placement.mincost < graph.npz > flows.npy`.

OR-tools can be neither interrupted nor given a time limit, so whoever asks starts this and kills it when time is up.
"""

from __future__ import annotations

import io
import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec

import numpy as np
import numpy.typing as npt

from datalocal.placement.problem import Ints, Nodes


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Graph:
    """A arcs between V vertices; supplies sum to 0 and all of them must be sent."""

    tail: Nodes
    head: Nodes
    capacity: Ints
    cost: Ints
    supply: Ints
    """[V]"""


class NotSolvedError(Exception):
    """There is no answer, and `str` says why: not installed, out of time, infeasible."""


def installed() -> bool:
    """Whether OR-tools is there (extra `datalocal[optimal]`)."""
    return find_spec("ortools") is not None


def solve(graph: Graph, timeout_s: float) -> Ints:
    """[A] flow on each arc at the least cost. Raises NotSolvedError."""
    if not installed():
        raise NotSolvedError("OR-tools is not installed (pip install 'datalocal[optimal]')")
    sent = io.BytesIO()
    for part in (graph.tail, graph.head, graph.capacity, graph.cost, graph.supply):
        np.save(sent, part)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        done = subprocess.run(
            [sys.executable, "-m", "datalocal.placement.mincost"],
            input=sent.getbuffer(),
            capture_output=True,
            timeout=timeout_s,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        raise NotSolvedError(f"OR-tools was not done after {timeout_s:g} s") from None
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise NotSolvedError(f"OR-tools ended with {done.returncode}: {''.join(last)}")
    flows: Ints = np.load(io.BytesIO(done.stdout))
    return flows.astype(np.int64)


def solve_here(graph: Graph) -> npt.NDArray[np.integer]:
    """[A] flows, in this process and for as long as it takes. Raises NotSolvedError."""
    from ortools.graph.python import min_cost_flow

    solver = min_cost_flow.SimpleMinCostFlow()
    arcs = solver.add_arcs_with_capacity_and_unit_cost(graph.tail, graph.head, graph.capacity, graph.cost)
    solver.set_nodes_supplies(np.arange(len(graph.supply), dtype=np.int32), graph.supply)
    status = solver.solve()
    if status != solver.OPTIMAL:
        raise NotSolvedError(f"the graph has no feasible flow (status {status})")
    flows: npt.NDArray[np.integer] = solver.flows(arcs)
    return flows


def _main() -> None:
    received = io.BytesIO(sys.stdin.buffer.read())
    tail, head, capacity, cost, supply = (np.load(received) for _ in range(5))
    flows = solve_here(Graph(tail=tail, head=head, capacity=capacity, cost=cost, supply=supply))
    np.save(sys.stdout.buffer, np.asarray(flows).astype(np.int32))


if __name__ == "__main__":
    _main()
