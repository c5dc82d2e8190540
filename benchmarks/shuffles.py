"""Does it cost accuracy that a rank keeps its shards? Four shuffles on MNIST-5k with class-sorted shards, paired by seed.

`local` and `rotate` also under a class quota.

    python -m benchmarks.shuffles [--seeds 5] [--epochs 5]

Five nodes hold ten shards of 500 digits, each shard of one class, with three replicas drawn at random: a rank that keeps its
shards sees two classes. A small CNN is trained with BatchNorm and with GroupNorm, by datalocal's own train path under
the in-process executor, whose ranks take turns on one model: every rank's batch of 32 is normalised by itself, and running
statistics are averaged over the ranks, as on real ones (tests/test_train_gang.py holds the two against each other).

Within a seed, weights, batch size and number of steps are the same for all shuffles, so differences to `global` are paired.
"""

from __future__ import annotations

import argparse
import json
import logging
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml
from scipy import stats

from benchmarks.pairs import command, machine, versions
from datalocal import runner
from datalocal.demo.mnist import make_digits
from datalocal.launch import embedded
from datalocal.spec.cluster import load_cluster
from datalocal.storage.client import Store
from datalocal.storage.counting import ByteCounter
from datalocal.storage.server import StoreServer
from datalocal.units import format_bytes

JOB = Path(__file__).resolve().parent / "shuffles_job" / "job.yaml"
NODES, REPLICAS, SHARD_ROWS, GROUP_ROWS = 5, 3, 500, 50
NORMS = ("batch", "group")
SHUFFLES: dict[str, tuple[str, ...]] = {
    "local": ("train.shuffle=local",),
    "local, quota": ("train.shuffle=local", "train.class_quota=true"),
    "rotate": ("train.shuffle=rotate",),
    "rotate, quota": ("train.shuffle=rotate", "train.class_quota=true"),
    "partial 0.1": ("train.shuffle=partial", "train.exchange=0.1"),
    "global": ("train.shuffle=global",),
}
MIXING = ("label_distance_mean", "changed_share", "mixture_entropy", "read_amplification")


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One run."""

    accuracy: float
    exchanged_bytes: int
    """Over all epochs, what a node read from another one."""
    mixing: dict[str, float]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument("--epochs", type=int, default=5)
    options.add_argument("--json", type=Path, help="write every run's figures here too")
    chosen = options.parse_args()
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(1)
    print(f"$ {command()}\n{machine()}\n{versions('torch', 'numpy', 'pyarrow', 'mlxtend')}\n", flush=True)
    results: dict[tuple[str, str], list[Result]] = defaultdict(list)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        home, cluster_file = Path(folder) / "home", write_cluster(Path(folder))
        fill(home, cluster_file)
        for seed in range(chosen.seeds):
            for norm in NORMS:
                for name, keys in SHUFFLES.items():
                    overrides = (*keys, f"train.arguments.norm={norm}", f"train.epochs={chosen.epochs}")
                    result = train(
                        home, cluster_file, seed, overrides, f"{norm}-{name.replace(',', '').replace(' ', '-')}-{seed}"
                    )
                    results[norm, name].append(result)
                    print(f"seed {seed}, {norm} norm, {name}: {result.accuracy:.3f}", flush=True)
    print(f"\n{table(results, chosen.epochs)}\n\n{time.monotonic() - began:.0f} s")
    if chosen.json:
        told = [
            {"norm": n, "shuffle": s, "seed": i, **_plain(r)}
            for (n, s), rs in results.items()
            for i, r in enumerate(rs)
        ]
        chosen.json.write_text(json.dumps(told, indent=1))


def _plain(result: Result) -> dict[str, object]:
    return {"accuracy": result.accuracy, "exchanged_bytes": result.exchanged_bytes, **result.mixing}


def write_cluster(folder: Path) -> Path:
    """Five storage nodes in two racks."""
    nodes = [{"name": f"node{n}", "rack": f"rack{n * 2 // NODES}", "role": "storage", "cores": 1} for n in range(NODES)]
    content = {"name": "five", "kind": "embedded", "replication": REPLICAS, "free_disk_floor_bytes": 0, "nodes": nodes}
    path = folder / "cluster.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def fill(home: Path, cluster_file: Path) -> None:
    """Write the shards to three nodes each, through real stores. The same in every call."""
    cluster = load_cluster(cluster_file)
    servers = {}
    for node in cluster.nodes:
        root = embedded.node_root(home, cluster.name, node.name)
        root.mkdir(parents=True)
        servers[node.name] = StoreServer(node=node.name, root=root, token="t" * 32)
    stores = {name: server.location for name, server in servers.items()}
    store = Store(node="head", root=None, stores=stores, token="t" * 32, counter=ByteCounter())
    digits = sorted(make_digits(), key=lambda digit: digit.label)
    draw = np.random.default_rng(1)
    # Three permutations side by side: every node holds as many replicas as any other.
    places = [draw.permutation(len(digits) // SHARD_ROWS) for _ in range(REPLICAS)]
    while any(len({int(column[i]) % NODES for column in places}) < REPLICAS for i in range(len(places[0]))):
        places = [draw.permutation(len(digits) // SHARD_ROWS) for _ in range(REPLICAS)]
    metadata = {"datalocal": json.dumps({"classes": [str(digit) for digit in range(10)]})}
    schema = pa.schema([("image", pa.binary()), ("label", pa.int64()), ("split", pa.string())], metadata=metadata)
    for number, start in enumerate(range(0, len(digits), SHARD_ROWS)):
        rows = digits[start : start + SHARD_ROWS]
        content = {
            "image": [digit.image_bytes for digit in rows],
            "label": [int(digit.label) for digit in rows],
            "split": [digit.split for digit in rows],
        }
        written = pa.BufferOutputStream()
        pq.write_table(pa.table(content, schema=schema), written, compression="none", row_group_size=GROUP_ROWS)
        nodes = [f"node{int(column[number]) % NODES}" for column in places]
        store.write(f"digits-by-class/part-{number:02d}.parquet", written.getvalue(), nodes)
    store.close()
    for server in servers.values():
        server.close()


def train(home: Path, cluster_file: Path, seed: int, overrides: tuple[str, ...], run_id: str) -> Result:
    """One run of the job, with its samples accounted for."""
    run = runner.prepare(
        runner.RunRequest(
            job_file=JOB,
            cluster_file=cluster_file,
            home=home,
            policies=("data-local",),
            overrides=overrides,
            seed=seed,
            executor="inline",
            run_id=run_id,
        )
    )
    if runner.execute(run) != 0:
        raise SystemExit(f"{run_id}: {run.state}")
    (arm,) = run.read_report()["arms"]
    (stage,) = arm["stages"]
    samples = stage["samples"]
    assert samples["seen"] == samples["expected"] and not samples["repeated"], samples
    rows = [row for row in arm["bytes"] if row["class"] in ("input", "exchange")]
    moved = sum(row["bytes"] for row in rows if row["source"] != row["destination"])
    return Result(
        accuracy=stage["accuracy"], exchanged_bytes=moved, mixing={key: stage["mixing"][key] for key in MIXING}
    )


def table(results: dict[tuple[str, str], list[Result]], epochs: int) -> str:
    """A line per normalisation and shuffle, as Markdown."""
    lines = [
        "| norm | shuffle | accuracy, mean | sd | minus global, paired: mean [95 %] "
        "| label distance | change rank | mixture | rows read per row used | over the network per epoch |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (norm, name), runs in sorted(results.items(), key=lambda item: NORMS.index(item[0][0])):
        accuracies = [100 * run.accuracy for run in runs]
        pairs = [a - 100 * b.accuracy for a, b in zip(accuracies, results[norm, "global"], strict=True)]
        spread = f"{stdev(accuracies):.2f}" if len(runs) > 1 else "-"
        moved = format_bytes(round(mean(run.exchanged_bytes for run in runs) / epochs))
        distance, changed, mixture, amplification = (mean(run.mixing[key] for run in runs) for key in MIXING)
        lines.append(
            f"| {norm} | {name} | {mean(accuracies):.2f} % | {spread} | {_interval(pairs)} | {distance:.2f} "
            f"| {100 * changed:.0f} % | {mixture:.2f} | {amplification:.2f} | {moved} |"
        )
    return "\n".join(lines)


def _interval(pairs: list[float]) -> str:
    if not any(pairs):
        return "-"
    if len(pairs) < 2:
        return f"{mean(pairs):+.2f}"
    half = stats.t.ppf(0.975, len(pairs) - 1) * stdev(pairs) / len(pairs) ** 0.5
    return f"{mean(pairs):+.2f} [{mean(pairs) - half:+.2f}, {mean(pairs) + half:+.2f}]"


if __name__ == "__main__":
    main()
