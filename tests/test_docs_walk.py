"""The walk of a new user: every file and command of docs/your-own-code.md, in an empty folder outside the project."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).resolve().parent.parent / "docs" / "your-own-code.md"
BLOCK = re.compile(r"^```(\w+)(?: title=(\S+))?\n(.*?)^```", re.DOTALL | re.MULTILINE)


def shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a line as a user types it, with the `datalocal` and `python` of this environment on the PATH."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {key: value for key, value in os.environ.items() if key != "DATALOCAL_HOME"} | {"PATH": path}
    return subprocess.run(
        ["bash", "-euc", command], cwd=folder, env=environment, capture_output=True, text=True, timeout=280, check=False
    )


def walk(folder: Path) -> None:
    for language, title, text in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        if title:
            (folder / title).write_text(text, encoding="utf-8")
            continue
        assert language == "sh", f"a block of the page that is neither a file nor commands: {text}"
        for line in text.splitlines():
            done = shell(line, folder)
            assert done.returncode == 0, f"$ {line}\n{done.stdout}\n{done.stderr}"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_walk_of_a_new_user(tmp_path: Path) -> None:
    try:
        walk(tmp_path)
    except BaseException:
        shell("datalocal cluster down", tmp_path)
        raise
    runs = json.loads(shell("datalocal list --json", tmp_path).stdout)["runs"]
    assert {run["id"]: run["state"] for run in runs} == {
        "first": "completed",
        "second": "completed",
        "script": "completed",
    }
    report = json.loads(shell("datalocal report script --json", tmp_path).stdout)
    samples = [stage["samples"] for arm in report["arms"] for stage in arm["stages"] if stage["kind"] == "train"]
    assert samples
    for used in samples:
        assert used["seen"] == used["expected"] > 0
        assert used["repeated"] == used["dropped"] == 0
