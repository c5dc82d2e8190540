"""A cluster of the kind `existing` on loopback, as its users run it: head and workers are commands, with TLS between them."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

from datalocal.launch.certificates import make
from datalocal.spec.cluster import Cluster, load_cluster

STORAGE, COMPUTE = ("node1", "node2"), "central1"


def _ports() -> Iterator[int]:
    """Ports below those that the kernel gives to who asks for any, each once; tests that run at the same time have others."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 8
    first, many = 15_000 + 2_000 * worker, 2_000
    start = random.randrange(many)  # another run of the tests may be under way
    return (first + (start + step) % many for step in range(many))


_candidates = _ports()


def free_port() -> int:
    """A port that nobody listens on, and that nobody is given by chance until it is used."""
    for port in _candidates:
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("no port is free")


def config(folder: Path, **changes: Any) -> Path:
    """A cluster file for loopback: two storage nodes and a central one, certificates in `tls/` beside it."""
    nodes: list[dict[str, Any]] = [
        {"name": name, "rack": f"rack{place}", "folder": str(folder / "disks" / "{name}")}
        for place, name in enumerate(STORAGE)
    ]
    nodes.append({"name": COMPUTE, "rack": "central", "role": "compute", "folder": str(folder / "disks" / "{name}")})
    content = {
        "name": "joined",
        "kind": "existing",
        "scheduler": f"tls://127.0.0.1:{free_port()}",
        "tls": {"ca": "tls/ca.pem", "certificate": "tls/{name}.pem", "key": "tls/{name}-key.pem"},
        "token_file": "tls/token",
        "replication": 2,
        "block_bytes": 1 << 16,
        "free_disk_floor_bytes": 0,
        "nodes": nodes,
        **changes,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "cluster.yaml"
    path.write_text(
        yaml.safe_dump({key: value for key, value in content.items() if value is not None}), encoding="utf-8"
    )
    return path


class Command:
    """A `datalocal` command that runs until it is told to stop; what it says is kept."""

    def __init__(self, arguments: list[str], home: Path, *, before: str = "", within: Sequence[str] = ()) -> None:
        """`before`: Python that runs in the process first; `within`: a command that becomes the one after it."""
        code = f"{before}\nfrom datalocal.cli import main\nmain({arguments!r})"
        words = ["-c", code] if before else ["-m", "datalocal", *arguments]
        self.process = subprocess.Popen(
            [*within, sys.executable, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            env={**os.environ, "DATALOCAL_HOME": str(home)},
        )
        self.said: list[str] = []
        self._heard = threading.Condition()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def wait_for(self, text: str, timeout_seconds: float = 60) -> None:
        """Wait until it has said `text`."""
        with self._heard:
            self._heard.wait_for(lambda: text in self.text or self.process.poll() is not None, timeout_seconds)
        assert text in self.text, f"{text!r} was not said:\n{self.text}"

    def end(self, timeout_seconds: float = 60) -> tuple[int, str]:
        """Wait for it to end by itself: exit code, and what it said."""
        code = self.process.wait(timeout_seconds)
        self._listener.join(5)
        return code, self.text

    def stop(self) -> int:
        """SIGTERM, and its exit code."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(20)
        finally:
            self.process.kill()

    @property
    def text(self) -> str:
        return "".join(self.said)

    def _listen(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self._heard:
                self.said.append(line)
                self._heard.notify_all()
        with self._heard:
            self._heard.notify_all()


def wait_until(what: Callable[[], bool], seconds: float = 120) -> None:
    """Look now and then."""
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


class JoinedWorld:
    """Head and workers of one cluster, started as commands."""

    def __init__(
        self,
        folder: Path,
        within: Callable[[str], Sequence[str]] = lambda _host: (),
        *,
        scheduler_of_others: bool = False,
        **changes: Any,
    ) -> None:
        """`within` says what runs a command on a host; `changes` are those of the cluster file.

        With `scheduler_of_others` the head is `dask scheduler` with a worker of its own, and no node has joined yet.
        """
        self.folder, self.home, self._within = folder, folder / "home", within
        self.file = config(folder, **changes)
        self.cluster: Cluster = load_cluster(self.file)
        make(self.cluster, folder=None, days=10)
        self.running: list[Command] = []
        self.workers: dict[str, Command] = {}
        if scheduler_of_others:
            scheduler = str(self.cluster.scheduler)
            host, _, port = scheduler.removeprefix("tls://").partition(":")
            self.head = self._dask("scheduler", "head", "--protocol", "tls", "--host", host, "--port", port)
            self.head.wait_for("Scheduler at:")
            self._dask("worker", "client", scheduler, "--no-nanny", "--name", "theirs").wait_for("Registered to:")
            return
        self.head = self.start("head", ["head", "--cluster", str(self.file), "--dashboard", "127.0.0.1:0"])
        self.head.wait_for("scheduler tls://")
        self.join_all()

    def join_all(self) -> None:
        """Start every node's worker and wait until all are in."""
        self.workers = {node.name: self.worker(node.name) for node in self.cluster.nodes}
        for name, worker in self.workers.items():
            worker.wait_for(f"{name} joined")

    def _dask(self, command: str, name: str, *words: str) -> Command:
        """One of dask's own commands, with the certificate of `name`."""
        assert self.cluster.tls is not None
        tls = self.cluster.tls.of(name)
        whole = [*words, "--no-dashboard", "--tls-ca-file", tls.ca, "--tls-cert", tls.certificate, "--tls-key", tls.key]
        code = f"from distributed.cli.dask_{command} import main as dask_main\ndask_main({whole!r})"
        return self.start("head", [], before=code)

    def start(self, host: str, arguments: list[str], *, before: str = "") -> Command:
        """A command of this cluster on one of its hosts, stopped at the end."""
        self.running.append(Command(arguments, self.home, before=before, within=self._within(host)))
        return self.running[-1]

    def worker(self, name: str, *options: str, file: Path | None = None, before: str = "") -> Command:
        """`datalocal worker` for a node."""
        words = ["worker", "--cluster", str(file or self.file), "--node", name, *options]
        return self.start(name, words, before=before)

    def run(self, *arguments: str, check: bool = True) -> Mapping[str, Any]:
        """A short command's JSON, run on the head's host."""
        done = subprocess.run(
            [
                *self._within("head"),
                sys.executable,
                "-m",
                "datalocal",
                *arguments,
                "--cluster",
                str(self.file),
                "--json",
            ],
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
            env={**os.environ, "DATALOCAL_HOME": str(self.home)},
        )
        assert not check or done.returncode == 0, done.stderr
        content: Mapping[str, Any] = json.loads(done.stdout)
        return content

    def close(self) -> None:
        """Stop whatever still runs."""
        for command in reversed(self.running):
            if command.process.poll() is None:
                command.stop()
