"""What `plan` foretells after one calibration run, beside what the same arms then measure, over and over.

    python -m benchmarks.prediction [--cluster cluster-configs/netns.yaml] [--rate-mbit 200] [--images 3000] [--rounds 3]

One run under data-local, central-nas and random calibrates (random: a gang on nodes that have trained before). Arms that it did
not have are planned once with its rates, and then run in rounds, each arm a run of its own, in another order in each round. The
median of what was measured is held against the one prediction: `ok` is bytes within 2 % and seconds within 20 %.

Nodes of one machine share its cores with whatever else runs there: what others took is printed beside every run, and a run that
they disturbed is done again. A namespace cluster (kind: netns) needs Linux and root.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from benchmarks.quiet import wait_until_quiet, watched

CALIBRATED = ("data-local", "central-nas", "random")
FORETOLD = ("reduce-then-ship", "central-staged", "round-robin", "optimal-makespan")
EMBEDDED = Path(__file__).parent.parent / "cluster-configs" / "embedded.yaml"

BYTES_WITHIN, SECONDS_WITHIN = 0.02, 0.20
QUIET_CORES = 0.2
"""What others may take of this machine while it is measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One figure of one arm: foretold once, measured once or more often."""

    arm: str
    figure: str
    predicted: float
    measured: tuple[float, ...]

    @property
    def middle(self) -> float:
        """The median of what was measured."""
        return median(self.measured)

    @property
    def ratio(self) -> float:
        """Predicted over measured; 1 where there is nothing of either."""
        if not self.middle:
            return 1.0 if not self.predicted else float("inf")
        return self.predicted / self.middle

    @property
    def near(self) -> bool:
        """Whether it is as near as was promised."""
        return abs(self.ratio - 1) <= (BYTES_WITHIN if self.figure == "bytes" else SECONDS_WITHIN)


def command(home: Path, *words: str) -> dict[str, Any]:
    """What a command of datalocal prints as JSON."""
    done = subprocess.run(
        [sys.executable, "-m", "datalocal", *words, "--json"],
        env={**os.environ, "DATALOCAL_HOME": str(home)},
        stdout=subprocess.PIPE,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"datalocal {' '.join(words)} ended with status {done.returncode}")
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def policies(names: Sequence[str]) -> list[str]:
    return [word for name in names for word in ("--policy", name)]


def compare(plan: Mapping[str, Any], arms: Sequence[Mapping[str, Any]]) -> list[Line]:
    """Bytes that leave a node, but for `control`, and seconds, of an arm and of its stages; `arms` are from reports."""
    name = plan["policy"]

    def line(figure: str, predicted: float, measured: Callable[[Mapping[str, Any]], float]) -> Line:
        return Line(arm=name, figure=figure, predicted=predicted, measured=tuple(measured(arm) for arm in arms))

    def moved(arm: Mapping[str, Any]) -> float:
        by_class: Mapping[str, float] = arm["headline_bytes"]["by_class"]
        return sum(size for class_, size in by_class.items() if class_ != "control")

    def took(stage: str) -> Callable[[Mapping[str, Any]], float]:
        return lambda arm: {each["name"]: each["seconds"] for each in (*arm["staging"], *arm["stages"])}[stage]

    return [
        line("bytes", sum(row["bytes"] for row in plan["bytes"] if row["tier"] != "node_local"), moved),
        line("seconds", plan["seconds"], lambda arm: arm["seconds"]),
        *(
            line(f"seconds of {stage['stage']}", stage["seconds"], took(stage["stage"]))
            for stage in plan["seconds_by_stage"]
        ),
    ]


def table(lines: Sequence[Line]) -> str:
    rows = [f"{'arm':<18}{'figure':<24}{'predicted':>14}{'measured':>14}{'ratio':>8}  least to most"]
    for line in lines:
        form = ",.0f" if line.figure == "bytes" else ",.2f"
        rows.append(
            f"{line.arm:<18}{line.figure:<24}{line.predicted:>14{form}}{line.middle:>14{form}}{line.ratio:>8.3f}  "
            f"{min(line.measured):{form}} to {max(line.measured):{form}}"
        )
    return "\n".join(rows)


def verdicts(lines: Sequence[Line]) -> str:
    """`ok` or `MISS` of each arm's bytes and seconds."""
    held = {line.arm: [each for each in lines if each.arm == line.arm and " of " not in each.figure] for line in lines}
    return "\n".join(
        f"{arm:<18}{'ok' if all(line.near for line in own) else 'MISS':<6}"
        + ", ".join(f"{line.figure} {line.ratio:.3f}" for line in own)
        for arm, own in held.items()
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """One cluster and job, and how long to wait for a quiet machine."""

    home: Path
    words: tuple[str, ...]
    """The job and its options."""
    patience_seconds: float
    tries: int

    def run(self, names: Sequence[str], *words: str) -> dict[str, Any]:
        """The report of a run that nobody disturbed, or of the last that was tried."""
        for left in reversed(range(self.tries)):
            wait_until_quiet(self.home, QUIET_CORES, self.patience_seconds)
            with watched(self.home) as others:
                report = command(self.home, "submit", *self.words, *policies(names), *words)
            seconds = ", ".join(f"{arm['policy']} {arm['seconds']:.1f} s" for arm in report["arms"])
            again = others.cores > QUIET_CORES and left > 0
            print(
                f"{time.strftime('%H:%M:%S')} {report['run']['id']}: {seconds}; others took {others.cores:.2f} cores"
                f"{': once more' if again else ''}",
                flush=True,
            )
            if not again:
                break
        return report

    def foretell(self, calibration: str, foretold: Sequence[str], rounds: int) -> list[Line]:
        """Plan with the rates of the run `calibration`, run in rounds, compare."""
        told = ("--calibrate", calibration)
        plans = {name: command(self.home, "plan", *self.words, "--policy", name, *told)["arms"][0] for name in foretold}
        arms: dict[str, list[Mapping[str, Any]]] = {name: [] for name in foretold}
        for number in range(rounds):
            turn = number % len(foretold)
            for name in (*foretold[turn:], *foretold[:turn]):
                arms[name] += self.run((name,), *told)["arms"]
        return [line for name in foretold for line in compare(plans[name], arms[name])]


@contextmanager
def cluster_up(file: Path, home: Path) -> Iterator[None]:
    """The cluster of the file, up until the block is left."""
    command(home, "cluster", "up", "-f", str(file))
    try:
        yield
    finally:
        name = yaml.safe_load(file.read_text(encoding="utf-8"))["name"]
        subprocess.run(
            [sys.executable, "-m", "datalocal", "cluster", "down", name],
            env={**os.environ, "DATALOCAL_HOME": str(home)},
            stdout=subprocess.DEVNULL,
            check=True,
        )


def shaped(file: Path, rate_mbit: float, folder: Path) -> Path:
    """The same cluster with links of another rate."""
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    content.setdefault("network", {})["rate_mbit"] = rate_mbit
    found = folder / file.name
    found.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cluster", type=Path, default=EMBEDDED, help="cluster file; default: the embedded one")
    parser.add_argument("--rate-mbit", type=float, help="rate of every link, instead of the file's")
    parser.add_argument("--images", type=int, default=3000)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--job", default="resize-then-train")
    parser.add_argument("--calibrated", nargs="+", default=CALIBRATED)
    parser.add_argument("--foretold", nargs="+", default=FORETOLD)
    parser.add_argument("--home", type=Path, help="use a data set again")
    parser.add_argument("--calibration", metavar="RUN", help="of this home, instead of calibrating")
    parser.add_argument("--tries", type=int, default=3, help="of a run that others disturb")
    parser.add_argument(
        "--patience", type=float, default=600.0, help="seconds to wait for a quiet machine; 0: take it as it is"
    )
    options = parser.parse_args()
    from benchmarks.pairs import command as called
    from benchmarks.pairs import machine, versions

    print(
        f"$ {called()}\n{machine()}\n{versions('datalocal', 'torch', 'distributed', 'pyarrow')}\n{time.strftime('%F %T')}"
    )
    with tempfile.TemporaryDirectory(prefix="datalocal-prediction-") as folder:
        home = options.home or Path(folder) / "home"
        file = shaped(options.cluster, options.rate_mbit, Path(folder)) if options.rate_mbit else options.cluster
        cluster = ("--cluster", str(file))
        with cluster_up(file, home):
            command(home, "demo", "--ingest-only", "--images", str(options.images), *cluster)
            words = (options.job, *cluster, "--set", f"train.epochs={options.epochs}")
            bench = Bench(home=home, words=words, patience_seconds=options.patience, tries=options.tries)
            calibration = options.calibration or str(bench.run(options.calibrated)["run"]["id"])
            lines = bench.foretell(calibration, options.foretold, options.rounds)
    print(table(lines))
    print(verdicts(lines))


if __name__ == "__main__":
    main()
