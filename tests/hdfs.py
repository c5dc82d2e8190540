"""A real HDFS in network namespaces for tests: brought up by the command line, looked at from within its nodes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from datalocal.launch import embedded, hadoop, namespaces
from datalocal.launch.namespaces import Network
from datalocal.spec.cluster import Cluster, load_cluster
from tests import worlds

PRELUDE = """
import json, sys, time
from pathlib import Path
from datalocal.errors import DatalocalError
from datalocal.spec.cluster import Cluster
from datalocal.storage.counting import ByteCounter
from datalocal.storage.opening import open_store

folder, node = Path(sys.argv[1]), sys.argv[2]
cluster = Cluster.model_validate_json((folder / "cluster.json").read_text())
state = json.loads((folder / "processes.json").read_text())
counter = ByteCounter()
store = open_store(
    cluster, node=node, root=folder / "nodes" / node, stores=state["stores"], token=(folder / "token").read_text(), counter=counter
)
def say(**content):
    print(json.dumps(content), flush=True)
"""


_LACKING = namespaces.missing() or hadoop.missing()

MARKS = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.xdist_group("hdfs"),
    pytest.mark.skipif(bool(_LACKING), reason=f"HDFS in namespaces needs {_LACKING}"),
]
"""`pytestmark` of every module that brings a real HDFS up."""


def cluster_file(folder: Path, name: str, *, storage: int, compute: int = 1) -> Path:
    """The config of a cluster of namespaces with its own HDFS; blocks are small."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes: dict[str, Any] = {"storage": storage, "compute": compute, "block_bytes": 200_000}
    path = worlds.cluster_file(folder, name=name, kind="netns", **sizes)
    with path.open("a", encoding="utf-8") as file:
        file.write("storage: {kind: hdfs}\n")
    return path


class World:
    """One cluster, its home and its commands."""

    def __init__(self, home: Path, config: Path) -> None:
        self.home, self.config = home, config
        self.cluster: Cluster = load_cluster(config)
        self.folder = embedded.folder_of(home, self.cluster.name)
        self.network = Network(self.folder)

    def cli(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """A command of datalocal, in a process of its own."""
        done = subprocess.run(
            [sys.executable, "-m", "datalocal", *words],
            env={**os.environ, "DATALOCAL_HOME": str(self.home)},
            capture_output=True,
            text=True,
            check=False,
            timeout=500,
        )
        assert not check or done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
        return done

    def up(self) -> None:
        self.cli("cluster", "up", "-f", str(self.config))

    def heal(self) -> None:
        """Up again, where a process of it is gone."""
        state = json.loads((self.folder / "processes.json").read_text())
        if not all(psutil.pid_exists(identity["pid"]) for identity in state["processes"].values()):
            self.up()

    def down(self) -> None:
        self.cli("cluster", "down", self.cluster.name)

    def destroy(self) -> None:
        """Down, whatever state it is in."""
        embedded.down(self.home, self.cluster.name)
        shutil.rmtree(self.folder, ignore_errors=True)

    def report(self, run: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.home / run / "report.json").read_text())
        return found

    def events(self, run: str, arm: str = "data-local") -> list[dict[str, Any]]:
        path = self.home / run / "arms" / arm / "events.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]

    def start(self, node: str, code: str) -> subprocess.Popen[str]:
        """Python on `node`, with a store that reads and writes as that node; `say(...)` prints a line of JSON."""
        command = [*self.network.command(node), sys.executable, "-c", PRELUDE + code, str(self.folder), node]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def on(self, node: str, code: str) -> list[dict[str, Any]]:
        """All lines that the code says."""
        process = self.start(node, code)
        out, _ = process.communicate(timeout=200)
        assert process.returncode == 0, out
        return [json.loads(line) for line in out.splitlines()]

    def process(self, name: str) -> psutil.Process:
        """`node1`, `datanode-node1`, `namenode`, `head`."""
        state = json.loads((self.folder / "processes.json").read_text())
        return psutil.Process(state["processes"][name]["pid"])

    def kill(self, *names: str) -> None:
        victims = [self.process(name) for name in names]
        for victim in victims:
            victim.send_signal(signal.SIGKILL)
        psutil.wait_procs(victims, timeout=10)

    def run_on(self, node: str, *command: str) -> str:
        """A command of the system within the node's network."""
        whole = [*self.network.command(node), *command]
        return subprocess.run(whole, capture_output=True, text=True, check=True).stdout

    def tool(self, tool: hadoop.Daemon, *words: str) -> str:
        """One of Hadoop's own tools, as the judge."""
        conf = self.folder / "hdfs" / "conf"
        command = hadoop.command(tool, *words, conf=conf, class_path=hadoop.class_path())
        environment = {**os.environ, "DATALOCAL_HDFS_DATA": str(self.folder / "hdfs" / "head")}
        whole = [*self.network.command("head"), *command]
        done = subprocess.run(whole, capture_output=True, text=True, check=False, env=environment, timeout=180)
        assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def block_files(self, node: str) -> list[Path]:
        """The finished blocks on the node's disk."""
        found = (self.folder / "hdfs" / node / "data").rglob("finalized/**/blk_*")
        return sorted(path for path in found if path.suffix != ".meta")
