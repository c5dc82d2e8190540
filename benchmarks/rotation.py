"""What an epoch plan costs, and what rotation gives: shards on many nodes with three replicas by HDFS's rule.

    python -m benchmarks.rotation [--shards 100000] [--nodes 1000] [--shuffle rotate]

One rank per node, one row group per shard of 900 to 1,100 rows, 64 rows per rank and step, so that no rank may be 64 rows off.
Seconds are the processor's (`time.process_time`), which other programs on the machine disturb less than the clock's.
"""

from __future__ import annotations

import argparse
import resource
import time

from benchmarks.pairs import command, machine, versions
from datalocal.placement.division import plan_epoch
from datalocal.placement.gang import EpochPlan, RankSlot
from datalocal.placement.mixing import changed_share, mixture_entropy, moved
from datalocal.placement.model import Assignment
from datalocal.placement.shuffles import shuffle_named
from datalocal.placement.synthetic import hdfs

ROWS_PER_STEP = 64


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--shards", type=int, default=100_000)
    options.add_argument("--nodes", type=int, default=1_000)
    options.add_argument("--epochs", type=int, default=3)
    options.add_argument("--shuffle", choices=["rotate", "partial"], default="rotate")
    chosen = options.parse_args()
    print(f"$ {command()}\n{machine()}\n{versions('numpy', 'scipy')}\n", flush=True)
    problem = hdfs(chosen.shards, chosen.nodes)
    names = [problem.node_names[i] for i in range(problem.nodes)]
    held = problem.replica_nodes.reshape(problem.shards, -1).tolist()
    assignments = [
        Assignment(shard=problem.shard_names[i], node=names[on[0]], sources=tuple(names[n] for n in on))
        for i, on in enumerate(held)
    ]
    homes = {each.shard: each for each in assignments}
    selected = {problem.shard_names[i]: [rows] for i, rows in enumerate(problem.shard_rows.tolist())}
    rows = {key: groups[0] for key, groups in selected.items()}
    slots = [RankSlot(rank=rank, node=node, local_rank=0) for rank, node in enumerate(names)]
    shuffle = shuffle_named(chosen.shuffle, 1, 0.1 if chosen.shuffle == "partial" else None)
    print("epoch  seconds  local   least rows  most rows  change rank  mixture")
    before: EpochPlan | None = None
    for epoch in range(chosen.epochs):
        began = time.process_time()
        plan = plan_epoch(shuffle.draw(assignments, rows, epoch), selected, slots, ROWS_PER_STEP * chosen.nodes)
        plan = shuffle.deal(plan, homes, selected, epoch)
        seconds = time.process_time() - began
        away = sum(s.samples for share in plan.shares for s in share.segments if s.sources[0] != share.slot.node)
        samples = [share.samples for share in plan.shares]
        table = None if before is None else moved(before, plan)
        change = "-" if table is None else f"{100 * changed_share(table):.1f} %"
        mixture = "-" if table is None else f"{mixture_entropy(table):.3f}"
        print(
            f"{epoch:5d}  {seconds:7.2f}  {100 * (1 - away / plan.samples):5.2f} %  {min(samples):9d}  {max(samples):9d}"
            f"  {change:>11}  {mixture:>7}",
            flush=True,
        )
        before = plan
    print(f"\n{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB at most")


if __name__ == "__main__":
    main()
