"""Resize by `data-local` and by `central-nas` over links of several rates: where does locality stop buying time?

    python -m benchmarks.link_rates --images 1200 --side 448 --rounds 2

Real HDFS in network namespaces (Linux, root, Java, Maven or HADOOP_HOME). Both arms are runs of the same job on the same cluster,
one after the other; every rate has a cluster of its own. All nodes share this machine's cores: the crossing is that of this
machine's speed of decoding, and a run on a busy machine says nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import yaml

from benchmarks.pairs import command, machine, versions
from tests import worlds

POLICIES = ("data-local", "central-nas")
UNSHAPED = 0.0


def datalocal(home: Path, *words: str) -> str:
    """A command in a process of its own; what it printed."""
    environment = {**os.environ, "DATALOCAL_HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-m", "datalocal", *words], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"datalocal {' '.join(words)}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def config(folder: Path, rate_mbit: float) -> Path:
    """Four storage and two central nodes in two racks and a central one; every link has the rate."""
    path = worlds.cluster_file(
        folder, storage=4, compute=2, name="link-rates", kind="netns", block_bytes=8 << 20, shared_host=True
    )
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    content["storage"] = {"kind": "hdfs"}
    if rate_mbit != UNSHAPED:
        content["network"] = {"rate_mbit": rate_mbit}
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def measure(folder: Path, pictures: Path, rate_mbit: float, rounds: int) -> dict[str, list[float]]:
    """Seconds of the preprocess stage by policy, a figure per round."""
    folder.mkdir()
    home, file = folder / "home", config(folder, rate_mbit)
    job = worlds.job_file(folder / "job", train=False)
    seconds: dict[str, list[float]] = {policy: [] for policy in POLICIES}
    datalocal(home, "cluster", "up", "-f", str(file))
    try:
        datalocal(home, "ingest", str(pictures), "pictures", "--cluster", str(file))
        for number in range(rounds):
            arms = [word for policy in POLICIES for word in ("--policy", policy)]
            told = datalocal(
                home, "submit", str(job), "--cluster", str(file), *arms, "--run-id", f"round{number}", "--json"
            )
            for arm in json.loads(told)["arms"]:
                (stage,) = arm["stages"]
                seconds[arm["policy"]].append(stage["seconds"])
    finally:
        datalocal(home, "cluster", "down", "link-rates", "--remove-data", "--yes")
    return seconds


def crossing(rows: Sequence[tuple[float, float, float]]) -> str:
    """In words, the slowest rate at which central-nas is no slower; `rows` are (rate, data-local, central-nas) seconds."""
    ordered = sorted(rows, key=lambda row: row[0] or float("inf"))
    for rate, local, central in ordered:
        if central <= local:
            return f"locality stops buying time at {told(rate)}"
    return f"locality buys time at every rate that was measured, up to {told(ordered[-1][0])}"


def told(rate_mbit: float) -> str:
    """A rate in words."""
    return "unshaped links" if rate_mbit == UNSHAPED else f"{rate_mbit:g} Mbit/s"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1200)
    parser.add_argument("--side", type=int, default=448)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--rates", type=float, nargs="+", default=[50, 100, 200, 500, UNSHAPED], help="0: unshaped")
    options = parser.parse_args()
    print(f"$ {command()}\n{machine()}\n{versions('datalocal', 'hdfs-native', 'pyarrow', 'distributed')}")
    rows = []
    with tempfile.TemporaryDirectory(prefix="datalocal-rates-") as scratch:
        pictures = worlds.image_folder(Path(scratch) / "pictures", options.images, options.side)
        for rate in options.rates:
            seconds = measure(Path(scratch) / f"{rate:g}", pictures, rate, options.rounds)
            local, central = (min(seconds[policy]) for policy in POLICIES)
            rows.append((rate, local, central))
            every = "; ".join(f"{policy} {', '.join(f'{s:.1f}' for s in seconds[policy])} s" for policy in POLICIES)
            print(f"{told(rate)}: {every}; central-nas / data-local {central / local:.2f}", flush=True)
    print(crossing(rows))


if __name__ == "__main__":
    main()
