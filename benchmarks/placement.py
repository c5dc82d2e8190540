"""Placement at scale: exact answers beside bare scipy and bare OR-tools on the same graph, in the same run.

    python -m benchmarks.placement [--shards 1000000] [--nodes 10000] [--only NAME ...]

Every figure comes from a process of its own, one after the other, so that peak memory is that solver's alone. Seconds are
wall and CPU seconds (the latter are what counts on a machine that others use too); generating the problem is not in them.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from benchmarks.pairs import command, machine, versions
from datalocal.catalog.model import Catalog
from datalocal.estimate.bytes import Known
from datalocal.estimate.rates import declared
from datalocal.placement import family, flow, mincost, quincy, synthetic
from datalocal.placement.certificate import certify, gap
from datalocal.placement.mend import Mender
from datalocal.placement.problem import Ints, Problem
from datalocal.placement.registry import POLICIES
from datalocal.placement.vet import vet
from datalocal.report.planned import to_json, weigh
from datalocal.spec.cluster import Cluster
from datalocal.spec.job import JobSpec

CLUSTERS: dict[str, Callable[..., Problem]] = {
    "hdfs": partial(synthetic.hdfs, workers=0.5),
    "three-speeds": partial(synthetic.three_speeds, workers=0.5),
    "ring": synthetic.ring,
}
PLANNED = ("data-local", "random", "hdfs-greedy", "optimal-bytes", "central-nas", "reduce-then-ship")
RESIZE = {"transform": "resize:small", "output": "small"}
RATES = {"disk_bytes_per_second": 1e9, "link_bytes_per_second": 1.25e9, "preprocess_images_per_second": 200.0}
SIX = ("random", "round-robin", "hdfs-greedy", "rack-aware", "optimal-bytes", "optimal-makespan")


def bare_graph(problem: Problem, capacity: Ints) -> tuple[Ints, Ints, Ints]:
    """Source 0, shards, nodes, sink: tail, head and capacity of every arc."""
    shards, nodes = problem.shards, problem.nodes
    tail = np.concatenate((np.zeros(shards, np.int64), problem.owner + 1, np.arange(nodes) + 1 + shards))
    ends = np.full(nodes, shards + nodes + 1)
    head = np.concatenate((np.arange(shards) + 1, problem.replica_nodes + 1 + shards, ends))
    return tail, head, np.concatenate((np.ones(shards + len(problem.replica_nodes), np.int64), capacity))


def bare_scipy(problem: Problem, makespan_s: float) -> dict[str, Any]:
    """`scipy.sparse.csgraph.maximum_flow`, graph and all."""
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_flow

    tail, head, most = bare_graph(problem, problem.capacity(makespan_s))
    size = problem.shards + problem.nodes + 2
    found = maximum_flow(csr_array((most.astype(np.int32), (tail, head)), shape=(size, size)), 0, size - 1)
    return {"non_local": problem.shards - int(found.flow_value)}


def bare_or_tools(problem: Problem, makespan_s: float) -> dict[str, Any]:
    """`ortools.graph.python.max_flow.SimpleMaxFlow`, graph and all."""
    from ortools.graph.python import max_flow

    tail, head, most = bare_graph(problem, problem.capacity(makespan_s))
    solver = max_flow.SimpleMaxFlow()
    arcs = solver.add_arcs_with_capacity(tail.astype(np.int32), head.astype(np.int32), most)
    if solver.solve(0, problem.shards + problem.nodes + 1) != solver.OPTIMAL:
        raise RuntimeError("OR-tools did not solve it")
    solver.flows(arcs)
    return {"non_local": problem.shards - int(solver.optimal_flow())}


def ours(problem: Problem, makespan_s: float) -> dict[str, Any]:
    """`optimal-bytes`: flow, certificate, balance, what is left over, and the check."""
    start = time.process_time()
    matching = flow.match(problem, problem.require(makespan_s))
    certificate = certify(problem, matching, makespan_s)
    matched = time.process_time() - start
    answer = flow.finish(problem, matching, policy="optimal-bytes", makespan_s=makespan_s)
    vet(problem, answer)
    found = gap(problem, certificate, answer)
    return {"non_local": found.ours, "gap": found.shards, "flow_and_certificate_cpu_s": round(matched, 2)}


def six_arms(problem: Problem, makespan_s: float) -> dict[str, Any]:
    """Six policies, each vetted."""
    local = {}
    for name in SIX:
        answer = family.placing(name)(problem, makespan_s, 0)
        vet(problem, answer)
        local[name] = round(answer.local / problem.shards, 5)
    return {"local": local}


def plan_of_six(problem: Problem, makespan_s: float) -> dict[str, Any]:
    """`plan` on a catalog of these shards: six arms placed, checked, estimated and priced, as JSON values."""
    here, found = as_catalog(problem)
    began = time.process_time()
    what = JobSpec.model_validate({"name": "resize", "dataset": "photos", "preprocess": RESIZE})
    plans = weigh(
        {name: POLICIES[name] for name in PLANNED},
        what,
        found,
        here,
        known=Known(output_share=0.1),
        rates=declared(here, source="assumed"),
        clock=time.perf_counter,
    )
    content = to_json(plans, what, found, here)
    took = time.process_time() - began  # without what makes a catalog of the problem
    return {
        "plan_cpu_s": round(took, 2),
        "local": {arm["policy"]: round(arm["local_share"], 5) for arm in content["arms"]},
    }


def as_catalog(problem: Problem) -> tuple[Cluster, Catalog]:
    """The problem's shards and nodes as a cluster file and a listing say them, and eight compute nodes."""
    names = [problem.node_names[number] for number in range(problem.nodes)]
    nodes = [{"name": name, "rack": f"rack{rack}"} for name, rack in zip(names, problem.rack.tolist(), strict=True)]
    nodes += [{"name": f"central{i}", "rack": "central", "role": "compute"} for i in range(8)]
    here = Cluster.model_validate({"name": "big", "shared_host": False, "rates": RATES, "nodes": nodes})
    return here, Catalog(
        dataset="photos",
        nodes=tuple(names),
        shards=tuple(f"part-{number:07d}.parquet" for number in range(problem.shards)),
        shard_bytes=problem.shard_bytes,
        shard_rows=problem.shard_rows,
        replica_offsets=problem.replica_offsets,
        replica_nodes=problem.replica_nodes.astype(np.int64),
        group_offsets=np.arange(problem.shards + 1),
        group_rows=problem.shard_rows,
        group_bytes=problem.shard_bytes,
    )


def our_quincy(problem: Problem, makespan_s: float) -> dict[str, Any]:
    """`quincy`, with its process."""
    found = quincy.quincy(problem, makespan_s, timeout_s=1500)
    return {"cost": found.cost, "bound": found.bound, "unsolved": found.unsolved}


def bare_quincy(problem: Problem, makespan_s: float) -> dict[str, Any]:
    """`SimpleMinCostFlow` on Quincy's graph with a vertex for every shard, here."""
    weight = quincy.weights(problem)
    one_each = np.arange(problem.shards), np.arange(problem.shards + 1)
    parts = quincy.Parts.of(problem, weight, grouped=one_each)
    graph = quincy.graph(problem, parts, problem.capacity(makespan_s), quincy.Tariff())
    return {"cost": float((mincost.solve_here(graph) * graph.cost).sum())}


def repair(problem: Problem, makespan_s: float) -> dict[str, Any]:
    """Ten nodes that work are lost one after the other; each time the answer is compared with solving again."""
    makespan_s *= 1.05  # as tight as it is, no node could be lost
    mender = Mender(problem, family.optimal_bytes(problem, makespan_s))
    lost = np.random.default_rng(1).permutation(np.flatnonzero(problem.rate))[:10].tolist()
    wall, cpu, moves = [], [], []
    for node in lost:
        started, used = time.perf_counter(), time.process_time()
        found = mender.lose(node)
        wall.append(time.perf_counter() - started)
        cpu.append(time.process_time() - used)
        moves.append(len(found.shard))
    again = flow.match(mender.problem, mender.problem.capacity(makespan_s)).non_local
    vet(mender.problem, mender.answer)
    return {
        "repair_ms": {"median": 1e3 * float(np.median(wall)), "worst": 1e3 * max(wall), "worst_cpu": 1e3 * max(cpu)},
        "moves": int(np.median(moves)),
        "non_local": found.non_local,
        "optimal": found.non_local == again,
    }


TASKS: dict[str, Callable[[Problem, float], dict[str, Any]]] = {
    "optimal-bytes": ours,
    "bare scipy": bare_scipy,
    "bare OR-tools": bare_or_tools,
    "repair": repair,
    "six arms": six_arms,
    "plan, six arms": plan_of_six,
    "quincy": our_quincy,
    "bare OR-tools quincy": bare_quincy,
}


def one(task: str, cluster: str, shards: int, nodes: int) -> dict[str, Any]:
    """Run one task in this process."""
    problem = CLUSTERS[cluster](shards, nodes, seed=0)
    makespan_s = problem.least_makespan()
    wall, cpu = time.perf_counter(), time.process_time()
    found = TASKS[task](problem, makespan_s)
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = time.process_time() - cpu + children.ru_utime + children.ru_stime
    peak = max(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, children.ru_maxrss) / 1024
    return {"wall_s": round(time.perf_counter() - wall, 4), "cpu_s": round(cpu_s, 4), "peak_mb": round(peak), **found}


def apart(task: str, cluster: str, shards: int, nodes: int) -> dict[str, Any]:
    """Run one task in a process of its own."""
    words = ["--one", task, cluster, "--shards", str(shards), "--nodes", str(nodes)]
    done = subprocess.run([sys.executable, "-m", "benchmarks.placement", *words], stdout=subprocess.PIPE, timeout=1800)
    if done.returncode:
        raise SystemExit(f"{task} on {cluster} failed")
    found: dict[str, Any] = json.loads(done.stdout)
    words = [f"{key} {value}" for key, value in found.items()]
    print(f"  {cluster:13} {task:21} {'  '.join(words)}", flush=True)
    return found


def said(what: str, found: float, wanted: float, unit: str = "") -> None:
    print(f"  {'ok  ' if found <= wanted else 'MISS'} {what}: {found:.2f}{unit}, wanted at most {wanted:g}{unit}")


def compare(cluster: str, shards: int, nodes: int, tasks: list[str]) -> None:
    """All tasks on one cluster, then the verdicts."""
    print(f"{cluster}: {shards:,} shards, 3 replicas, {nodes:,} nodes")
    found = {task: apart(task, cluster, shards, nodes) for task in tasks}
    if {"optimal-bytes", "bare scipy", "bare OR-tools"} <= found.keys():
        mine, peers = found["optimal-bytes"], (found["bare scipy"], found["bare OR-tools"])
        assert mine["non_local"] == peers[0]["non_local"] == peers[1]["non_local"], "the solvers disagree"
        said("optimal-bytes with certificate", mine["cpu_s"], 15 if cluster == "ring" else 5, " CPU s")
        said("peak memory", mine["peak_mb"], 1000, " MB")
        said("against the faster bare solver", mine["cpu_s"] / min(peer["cpu_s"] for peer in peers), 3, " x")
    if "repair" in found:
        said("repair, worst of ten", found["repair"]["repair_ms"]["worst"], 50, " ms")
    if "six arms" in found:
        said("six arms", found["six arms"]["cpu_s"], 30, " CPU s")
    if "plan, six arms" in found:
        said("plan of six arms", found["plan, six arms"]["plan_cpu_s"], 30, " CPU s")
    if {"quincy", "bare OR-tools quincy"} <= found.keys():
        assert found["quincy"]["cost"] == found["bare OR-tools quincy"]["cost"], f"not the same: {found['quincy']}"
        said("quincy against bare OR-tools", found["quincy"]["cpu_s"] / found["bare OR-tools quincy"]["cpu_s"], 2, " x")


def growth(cluster: str) -> None:
    """optimal-bytes from 10^4 to 10^6 shards, 100 per node: medians of several runs, as the small ones take milliseconds."""
    print(f"{cluster}: growth of optimal-bytes")
    runs = {10**4: 5, 10**5: 5, 10**6: 3}
    spent = {
        size: float(np.median([apart("optimal-bytes", cluster, size, size // 100)["cpu_s"] for _ in range(times)]))
        for size, times in runs.items()
    }
    print("  medians: " + ", ".join(f"{size:,} shards {1e3 * spent[size]:.1f} CPU ms" for size in spent))
    *smaller, largest = spent
    for small in smaller:
        wanted = (largest * np.log(largest)) / (small * np.log(small))
        said(f"{largest:,} against {small:,} shards", spent[largest] / spent[small], float(wanted), " x (n log n)")


def main() -> None:
    """Print every figure beside what is wanted."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, default=1_000_000)
    parser.add_argument("--nodes", type=int, default=10_000)
    parser.add_argument("--clusters", nargs="*", choices=[*CLUSTERS], default=[*CLUSTERS])
    parser.add_argument("--only", nargs="*", choices=[*TASKS, "growth"], default=[*TASKS, "growth"])
    parser.add_argument("--one", nargs=2, metavar=("TASK", "CLUSTER"), help="one task, in this process, as JSON")
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(one(asked.one[0], asked.one[1], asked.shards, asked.nodes)))
        return
    print(f"{command()}\n{machine()}\n{versions('numpy', 'scipy', 'ortools')}")
    for cluster in asked.clusters:
        compare(cluster, asked.shards, asked.nodes, [task for task in TASKS if task in asked.only])
        if "growth" in asked.only:
            growth(cluster)


if __name__ == "__main__":
    main()
