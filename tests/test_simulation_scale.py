"""A million shards on ten thousand nodes, one epoch, simulated: within the time and the memory that a person has."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

SECONDS, BYTES = 60.0, 2e9

# VmHWM, not ru_maxrss: the latter begins with the memory of the process that started this one.
_CHILD = """
import atexit, json, os, re, sys
from pathlib import Path
from datalocal.cli import main

def tell():
    used = os.times()
    peak = re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]
    cpu_seconds = used.user + used.system + used.children_user + used.children_system
    print(json.dumps({"cpu_seconds": cpu_seconds, "peak_bytes": 1024 * int(peak)}), file=sys.stderr)

atexit.register(tell)
main()
"""


def test_a_million_shards_on_ten_thousand_nodes_take_less_than_a_minute_and_two_gigabytes() -> None:
    words = ["--shards", "1000000", "--nodes", "10000", "--policies", "random,optimal-bytes"]
    words += ["--uplink-gbit", "40", "--disk-mbyte", "500", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", _CHILD, "simulate", *words], capture_output=True, check=True, timeout=280
    )
    used = json.loads(done.stderr.splitlines()[-1])
    assert used["cpu_seconds"] < SECONDS, "of its own: others may use this machine, too"
    assert used["peak_bytes"] < BYTES
    arms = {arm["policy"]: arm for arm in json.loads(done.stdout)["arms"]}
    for arm in arms.values():
        assert arm["seconds"] >= arm["bound_seconds"]
        assert sum(row["bytes"] for row in arm["bytes"]) == 1_000_000 * 128 * 1024 * 1024
    assert arms["random"]["bottleneck"] == "network" and arms["optimal-bytes"]["bottleneck"] == "compute"
