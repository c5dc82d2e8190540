"""How well the step time of estimates foretells measured steps: fitted to some placements of a job's GPUs, held against others.

    PYTHONPATH=. python -m benchmarks.step_time FOLDER

FOLDER holds profiles like those of Sia (Jayaram Subramanya et al., SOSP 2023; github.com/siasosp23/artifacts, `traces`) and of
Pollux (Qiao et al., OSDI 2021; github.com/petuum/adaptdl, `traces`, from AWS, files without a cluster's name). They are not part of
this project. To <application>/placements-<cluster>.csv is fitted (local_bsz, step_time, placement: a digit per node, its GPUs);
<application>/scalability-<cluster>.csv is foretold (local_bsz, step_time, num_nodes, num_replicas).

Fitted are what computing takes whatever the batch and for a sample, the bandwidth inside a node and between nodes (as seconds for
one copy of the gradients), the latency of a hop, and gamma. Step and ring are `datalocal.estimate.steps`. Ends with status 1 when
the median error of any held-out file is above 10 %.
"""

from __future__ import annotations

import argparse
import csv
import platform
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import scipy
from scipy.optimize import least_squares

from datalocal.estimate.steps import GAMMA, ring_seconds, step_seconds

GATE = 0.10
"""Of the median relative error."""
GRADIENT_BYTES = {"imagenet": 102_228_128}
"""ResNet-50 in fp32; of others nobody said which model exactly was profiled."""

Vector = npt.NDArray[np.float64]
LEAST = np.array([1e-4, 1e-6, 1e-5, 1e-5, 1e-7, 1.0])
MOST = np.array([10.0, 1.0, 30.0, 30.0, 1.0, 20.0])
"""fixed seconds, seconds per sample, seconds per copy of the gradients inside a node and between nodes, seconds per hop, gamma"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measured step, the mean of many."""

    batch: int
    """Samples of each GPU."""
    nodes: int
    gpus: int
    """Of all nodes."""
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One application on one cluster."""

    application: str
    cluster: str
    fitted: int
    tested: int
    median_error: float
    p90_error: float
    default_median_error: float
    """With gamma as it is where nobody measured it."""
    gamma: float
    bytes_per_second: float | None
    """Between nodes; None where the gradients' size is not known."""


def read(file: Path) -> list[Row]:
    """The rows of a file of either kind."""
    with file.open(encoding="utf-8", newline="") as lines:
        return [_row(line) for line in csv.DictReader(lines)]


def _row(line: dict[str, str]) -> Row:
    batch, seconds = int(line["local_bsz"]), float(line["step_time"])
    if "placement" in line:
        gpus = [int(digit) for digit in line["placement"]]
        return Row(batch=batch, nodes=len(gpus), gpus=sum(gpus), seconds=seconds)
    return Row(batch=batch, nodes=int(line["num_nodes"]), gpus=int(line["num_replicas"]), seconds=seconds)


def foretold(row: Row, parameters: Vector) -> float:
    """Seconds of the step."""
    fixed, each, inside, between, hop, gamma = parameters.tolist()
    copy = inside if row.nodes == 1 else between
    return step_seconds(fixed + each * row.batch, ring_seconds(row.gpus, copy, 1.0, hop), gamma)


def fit(rows: list[Row], gamma: float | None = None) -> Vector:
    """[6] the parameters with the least relative errors, large ones counting less; `gamma` None: fitted, too."""
    free = np.array([True] * 5 + [gamma is None])
    seconds = np.array([row.seconds for row in rows])
    per_sample = seconds.max() / max(row.batch for row in rows)

    def all_of(logarithms: Vector, start: Vector) -> Vector:
        parameters = start.copy()
        parameters[free] = np.exp(logarithms)
        return parameters

    def attempt(gamma_at: float) -> tuple[float, Vector]:
        start = np.array([seconds.min() / 2, per_sample / 2, 0.01, 0.1, 1e-3, gamma_at])
        found = least_squares(
            lambda x: np.log([foretold(row, all_of(x, start)) for row in rows]) - np.log(seconds),
            np.log(np.clip(start, LEAST * 1.01, MOST / 1.01))[free],
            bounds=(np.log(LEAST)[free], np.log(MOST)[free]),
            loss="soft_l1",
            f_scale=0.05,
        )
        return float(found.cost), all_of(found.x, start)

    return min((attempt(at) for at in ((1.5, 3.0) if gamma is None else (gamma,))), key=lambda each: each[0])[1]


def errors(rows: list[Row], parameters: Vector) -> Vector:
    """[rows] relative."""
    return np.array([abs(foretold(row, parameters) / row.seconds - 1) for row in rows])


def validate(folder: Path, told: Callable[[str], object] = lambda _: None) -> Iterable[Result]:
    """A result for each pair of files. Raises SystemExit when there is none."""
    pairs = [(file, file.with_name(file.name.replace("placements", "scalability"))) for file in _placements(folder)]
    if not any(held_out.is_file() for _, held_out in pairs):
        raise SystemExit(
            f"{folder} has no <application>/placements-<cluster>.csv with a scalability-<cluster>.csv beside it"
        )
    for file, held_out in pairs:
        if not held_out.is_file():
            told(f"{file} is left out: there is no {held_out.name}")
            continue
        rows, others = read(file), read(held_out)
        found = fit(rows)
        wrong = errors(others, found)
        size = GRADIENT_BYTES.get(file.parent.name)
        yield Result(
            application=file.parent.name,
            cluster=file.stem.removeprefix("placements-"),
            fitted=len(rows),
            tested=len(others),
            median_error=float(np.median(wrong)),
            p90_error=float(np.quantile(wrong, 0.9)),
            default_median_error=float(np.median(errors(others, fit(rows, GAMMA)))),
            gamma=float(found[5]),
            bytes_per_second=None if size is None else size / float(found[3]),
        )


def _placements(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/placements-*.csv"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    print(f"python {platform.python_version()}, numpy {np.__version__}, scipy {scipy.__version__}\n")
    print(
        f"| application | cluster | rows fitted | rows foretold | median error | p90 | with gamma {GAMMA:g} | gamma | GB/s |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    results = []
    for each in validate(folder, told=print):
        results.append(each)
        speed = "-" if each.bytes_per_second is None else f"{each.bytes_per_second / 1e9:.2f}"
        print(
            f"| {each.application} | {each.cluster} | {each.fitted} | {each.tested} | {each.median_error:.1%} | "
            f"{each.p90_error:.1%} | {each.default_median_error:.1%} | {each.gamma:.2f} | {speed} |",
            flush=True,
        )
    worst = max(results, key=lambda each: each.median_error)
    print(
        f"\nmedian error at most {worst.median_error:.1%} ({worst.application} on {worst.cluster}); wanted {GATE:.0%}"
    )
    return int(worst.median_error > GATE)


if __name__ == "__main__":
    raise SystemExit(main())
