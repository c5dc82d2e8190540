"""What `plan` foretells after one calibration run, beside what the same arms then measure, on the embedded cluster.

    PYTHONPATH=. python -m benchmarks.prediction [--images 2000] [--home FOLDER]

One run of resize-then-train under data-local, central-nas and random calibrates (random: a gang on nodes that have trained
before); reduce-then-ship and central-staged, which it did not see, are planned with its rates and then run. The calibration saw
another minute of this machine than they do: what else runs on it is in the ratios. With --home a cluster and its data are used
again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CALIBRATED = ("data-local", "central-nas", "random")
FORETOLD = ("reduce-then-ship", "central-staged")


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One figure of one arm."""

    arm: str
    figure: str
    predicted: float
    measured: float

    @property
    def ratio(self) -> float:
        """Predicted over measured."""
        return self.predicted / self.measured if self.measured else float("nan")


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


def foretell(
    home: Path,
    job: str,
    *options: str,
    cluster: Sequence[str] = (),
    calibrated: Sequence[str] = CALIBRATED,
    foretold: Sequence[str] = FORETOLD,
) -> list[Line]:
    """Calibrate, plan, run, compare. `options` are those of the job, `cluster` is `--cluster FILE`."""
    words = (job, *cluster, *options)
    before = command(home, "submit", *words, *policies(calibrated))["run"]["id"]
    plans = command(home, "plan", *words, *policies(foretold), "--calibrate", before)
    return compare(plans, command(home, "submit", *words, *policies(foretold), "--calibrate", before))


def compare(plans: Mapping[str, Any], report: Mapping[str, Any]) -> list[Line]:
    """Bytes that leave a node, but for `control`, and seconds, of every arm and stage."""
    planned = {arm["policy"]: arm for arm in plans["arms"]}
    lines = []
    for arm in report["arms"]:
        plan = planned[arm["policy"]]
        foretold = sum(row["bytes"] for row in plan["bytes"] if row["tier"] != "node_local")
        moved = sum(size for class_, size in arm["headline_bytes"]["by_class"].items() if class_ != "control")
        lines.append(Line(arm=arm["policy"], figure="bytes", predicted=foretold, measured=moved))
        lines.append(Line(arm=arm["policy"], figure="seconds", predicted=plan["seconds"], measured=arm["seconds"]))
        took = {stage["name"]: stage["seconds"] for stage in (*arm["staging"], *arm["stages"])}
        lines += [
            Line(
                arm=arm["policy"],
                figure=f"seconds of {stage['stage']}",
                predicted=stage["seconds"],
                measured=took[stage["stage"]],
            )
            for stage in plan["seconds_by_stage"]
        ]
    return lines


def table(lines: Sequence[Line]) -> str:
    rows = [f"{'arm':<18}{'figure':<24}{'predicted':>14}{'measured':>14}{'ratio':>8}"]
    for line in lines:
        form = ",.0f" if line.figure == "bytes" else ",.2f"
        rows.append(
            f"{line.arm:<18}{line.figure:<24}{line.predicted:>14{form}}{line.measured:>14{form}}{line.ratio:>8.3f}"
        )
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--job", default="resize-then-train")
    parser.add_argument("--home", type=Path)
    options = parser.parse_args()
    from benchmarks.pairs import machine, versions

    with tempfile.TemporaryDirectory(prefix="datalocal-prediction-") as folder:
        home = options.home or Path(folder)
        command(home, "demo", "--ingest-only", "--images", str(options.images))
        lines = foretell(home, options.job)
    print(machine())
    print(versions())
    print(f"calibrated on {', '.join(CALIBRATED)}; foretold: {', '.join(FORETOLD)}; {options.images} images")
    print(table(lines))


if __name__ == "__main__":
    main()
