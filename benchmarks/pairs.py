"""Interleaved pairs: on a shared machine only ratios taken minutes apart at most mean anything, and only with an interval."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np

from datalocal.launch.process import node_environment


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """Median of paired ratios and the 95 % interval of that median (bootstrap over pairs)."""

    median: float
    low: float
    high: float
    pairs: int

    def __str__(self) -> str:
        return f"{self.median:.3f}  [{self.low:.3f}, {self.high:.3f}]  ({self.pairs} pairs)"


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """Ratios of figures that were measured next to each other."""
    ratios = np.asarray(ours, float) / np.asarray(theirs, float)
    draws = np.random.default_rng(0).choice(ratios, (10_000, len(ratios)))
    low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
    return Ratio(median=float(np.median(ratios)), low=float(low), high=float(high), pairs=len(ratios))


def machine() -> str:
    """Processor, number of cores, system."""
    info = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {len(names)} cores, {platform.platform()}"


def versions(*packages: str) -> str:
    """Python's and these packages' versions."""

    def one(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return "not installed"

    return ", ".join([f"python {platform.python_version()}", *(f"{name} {one(name)}" for name in packages)])


def command() -> str:
    """How this benchmark was called."""
    module = Path(sys.argv[0]).stem
    return " ".join(["python -m", f"benchmarks.{module}", *sys.argv[1:]])


def as_a_node() -> None:
    """Start this program again with the environment of a node's process, if it does not have it: allocators read it once."""
    wanted = node_environment()
    if any(os.environ.get(name) != value for name, value in wanted.items()):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], wanted)  # this very program
