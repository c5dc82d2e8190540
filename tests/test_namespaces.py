"""Networks of namespaces: addresses, rates, two side by side, nothing left. Needs Linux, root and iproute2."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from datalocal.errors import ClusterError
from datalocal.launch.namespaces import Link, Network, missing

lacking = missing()
pytestmark = [
    pytest.mark.xdist_group("namespaces"),
    pytest.mark.skipif(bool(lacking), reason=f"network namespaces need {lacking}"),
]

LINKS = {"head": Link(address="10.77.0.1"), "slow": Link(address="10.77.0.11", rate_mbit=20)}


@pytest.fixture
def network(tmp_path: Path) -> Iterator[Network]:
    made = Network(tmp_path)
    made.create(LINKS, 24)
    yield made
    made.remove()


def seconds_to_send(network: Network, source: str, destination: str, size_bytes: int) -> float:
    """Time to move so many bytes over TCP between two hosts of the network."""
    with network.entered(destination):
        server = socket.create_server((LINKS[destination].address, 0))
    done = threading.Event()

    def receive() -> None:
        connection, _ = server.accept()
        left = size_bytes
        while left:
            left -= len(connection.recv(min(left, 1 << 20)))
        connection.sendall(b".")
        done.set()

    threading.Thread(target=receive, daemon=True).start()
    with network.entered(source):
        sender = socket.create_connection(server.getsockname(), 5)
    with sender, server:
        begin = time.monotonic()
        sender.sendall(bytes(size_bytes))
        sender.recv(1)
        return time.monotonic() - begin


@pytest.mark.parametrize(("source", "destination"), [("slow", "head"), ("head", "slow")])
def test_a_link_has_its_rate_each_way(network: Network, source: str, destination: str) -> None:
    size = 5_000_000
    least = (size - 131_072) * 8 / 20e6  # a bucketful goes at once
    assert seconds_to_send(network, source, destination, size) >= 0.95 * least


def test_two_networks_with_the_same_addresses_do_not_meet(network: Network, tmp_path: Path) -> None:
    other = Network(tmp_path / "other")
    other.create(LINKS, 24)
    try:
        with network.entered("slow"):
            server = socket.create_server(("10.77.0.11", 0))
        with server, other.entered("head"), pytest.raises(ConnectionRefusedError):
            socket.create_connection(server.getsockname(), 5)
        assert set(other.hosts) == set(network.hosts) == set(LINKS)
    finally:
        other.remove()
    assert other.hosts == []
    assert set(network.hosts) == set(LINKS)


def test_removal_kills_what_runs_there_and_leaves_nothing(network: Network) -> None:
    command = [*network.command("slow"), sys.executable, "-c", "print('here', flush=True); import time; time.sleep(60)"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    assert set(network.remove()) == set(LINKS)
    process.wait(10)
    assert not psutil.pid_exists(process.pid)
    process.stdout.close()
    assert network.hosts == []
    assert not (Path("/etc/netns") / network.namespace("slow")).exists()
    assert network.remove() == [], "removing twice is no error"


def test_a_host_finds_the_others_by_name(network: Network) -> None:
    code = "import socket; print(socket.gethostbyname('head'))"
    found = subprocess.run(
        [*network.command("slow"), sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "10.77.0.1"


def test_a_thread_comes_back_to_where_it_was(network: Network) -> None:
    before = Path("/proc/thread-self/ns/net").readlink()
    with network.entered("head"):
        assert Path("/proc/thread-self/ns/net").readlink() != before
    assert Path("/proc/thread-self/ns/net").readlink() == before
    network.remove()
    with pytest.raises(ClusterError, match="is gone"), network.entered("head"):
        pass
