"""What `plan` prints of a stage: a row per node, and of very many nodes the first and a sum."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from datalocal.cli.plan_ import _print_stage


def stage(nodes: int) -> dict[str, Any]:
    sizes = {"node_local": 10**6, "rack_local": 0, "off_rack": 0}
    return {
        "name": "preprocess",
        "input": "dataset",
        "nodes": [{"node": f"n{i:05d}", "shards": 90 + i % 3, "rows": 10, "bytes": sizes} for i in range(nodes)],
        "not_local": [],
    }


@pytest.mark.parametrize(("nodes", "shown", "more"), [(3, 3, ""), (21, 21, ""), (10_000, 20, "and 9,980 more nodes")])
def test_a_plan_on_very_many_nodes_still_fits_a_screen(nodes: int, shown: int, more: str) -> None:
    console = Console(file=io.StringIO(), width=100)
    _print_stage(console, "data-local", stage(nodes))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert sum("│ n0" in line for line in text.splitlines()) == shown
    assert more in text and ("90 to 92 shards on each of all 10,000" in text) == bool(more)
