"""docker compose: what the files promise, and the whole of it brought up where an engine answers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from datalocal.spec.cluster import load_cluster
from tests.joining import free_port

ROOT = Path(__file__).resolve().parent.parent
FILE = ROOT / "docker-compose.yml"


def services() -> dict[str, dict[str, Any]]:
    content: dict[str, dict[str, Any]] = yaml.safe_load(FILE.read_text(encoding="utf-8"))["services"]
    return content


def test_no_two_services_share_a_volume_and_only_loopback_is_published() -> None:
    volumes = [volume.partition(":")[0] for service in services().values() for volume in service.get("volumes", [])]
    assert len(volumes) == len(set(volumes)) == len(services())
    assert not any(volume.startswith((".", "/")) for volume in volumes), "nothing of the host's disk is mounted"
    ports = {name: service["ports"] for name, service in services().items() if "ports" in service}
    assert ports == {"head": ["127.0.0.1:${DASHBOARD_PORT:-8787}:8787"]}


def test_every_node_of_the_cluster_file_has_a_worker_at_its_address() -> None:
    cluster = load_cluster(ROOT / "cluster-configs" / "compose.yaml")
    workers = {
        service["command"][3]: service.get("network_mode", f"service:{name}")
        for name, service in services().items()
        if service["command"][:2] == ["datalocal", "worker"]
    }
    assert workers == {node.name: f"service:{cluster.address(node.name)}" for node in cluster.nodes}
    assert cluster.address("head") in services()


def test_the_override_reserves_the_gpus_for_the_compute_node_only() -> None:
    override = yaml.safe_load((ROOT / "docker-compose.gpu.yml").read_text(encoding="utf-8"))["services"]
    (device,) = override.pop("compute1")["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["capabilities"]) == ("nvidia", ["gpu"]) and not override


def missing_engine() -> str:
    """Why there is nothing to run containers with; empty when there is."""
    if shutil.which("docker") is None:
        return "docker is not installed"
    for question in (["docker", "info"], ["docker", "compose", "version"]):
        if subprocess.run(question, capture_output=True, check=False).returncode:
            return f"`{' '.join(question)}` fails: no engine with Compose v2 answers"
    return ""


class Compose:
    """One project of containers, with ports and volumes of its own."""

    def __init__(self) -> None:
        self._name = f"datalocal-test-{os.getpid()}"
        self._environment = {**os.environ, "DASHBOARD_PORT": str(free_port())}

    def __call__(self, *words: str, seconds: float = 300) -> str:
        done = subprocess.run(
            ["docker", "compose", "-p", self._name, *words],
            cwd=ROOT,
            env=self._environment,
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
        assert done.returncode == 0, f"{words}: {done.stdout}\n{done.stderr}"
        return done.stdout

    def head(self, *words: str, seconds: float = 600) -> Any:
        """The JSON that a command prints on the head."""
        return json.loads(self("exec", "-T", "head", "datalocal", *words, "--json", seconds=seconds))


@pytest.fixture
def compose() -> Iterator[Compose]:
    if told := missing_engine():
        pytest.skip(told)
    project = Compose()
    try:
        yield project
    finally:
        project("down", "-v", "--remove-orphans")


@pytest.mark.slow
@pytest.mark.timeout(2400)
@pytest.mark.xdist_group("compose")
def test_a_job_runs_in_containers_and_the_data_survive_down_and_up(compose: Compose) -> None:
    with suppress(AssertionError):  # its packages come by the network: one failure is tried again by the next line
        compose("build", seconds=1800)
    compose("up", "-d", "--build", seconds=1800)
    assert compose("exec", "-T", "head", "id", "-u").strip() != "0"
    assert compose.head("demo", "--ingest-only", "--images", "200")["images"] == 200
    report = compose.head(
        "submit", "jobs/resize-then-train.yaml", "--policy", "data-local", "--policy", "central-nas", seconds=1200
    )
    arms = {arm["policy"]: arm for arm in report["arms"]}
    assert {policy: arm["state"] for policy, arm in arms.items()} == {
        "data-local": "completed",
        "central-nas": "completed",
    }
    read = [row for row in arms["data-local"]["bytes"] if row["class"] == "input" and row["stage"] == "preprocess"]
    assert read and {row["source"] == row["destination"] for row in read} == {True}, "HDFS serves the replica beside it"
    doctor = compose.head("doctor")
    assert doctor["ok"], [check for check in doctor["checks"] if check["state"] == "fail"]
    run, before = report["run"]["id"], compose.head("catalog", "photos")
    assert before["rows"] == 200 and before["workable_share"] == 1.0
    compose("down")
    compose("up", "-d")
    deadline = time.monotonic() + 60
    while (after := compose.head("catalog", "photos"))["workable_share"] < 1.0:  # DataNodes still report their blocks
        assert time.monotonic() < deadline, after
    assert after["rows"] == 200
    assert compose.head("report", run)["run"]["id"] == run
