"""A million shards on ten thousand nodes, one epoch, simulated: within the time and the memory that a person has."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.slow

SECONDS, BYTES = 60.0, 2e9


def test_a_million_shards_on_ten_thousand_nodes_take_less_than_a_minute_and_two_gigabytes() -> None:
    words = ["--shards", "1000000", "--nodes", "10000", "--policies", "random,optimal-bytes"]
    words += ["--uplink-gbit", "40", "--disk-mbyte", "500", "--json"]
    begin = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "datalocal", "simulate", *words], stdout=subprocess.PIPE, check=True, timeout=280
    )
    assert time.monotonic() - begin < SECONDS
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 < BYTES
    arms = {arm["policy"]: arm for arm in json.loads(done.stdout)["arms"]}
    for arm in arms.values():
        assert arm["seconds"] >= arm["bound_seconds"]
        assert sum(row["bytes"] for row in arm["bytes"]) == 1_000_000 * 128 * 1024 * 1024
    assert arms["random"]["bottleneck"] == "network" and arms["optimal-bytes"]["bottleneck"] == "compute"
