"""A network of Linux network namespaces: one per host, a bridge in a namespace of its own, link rates by `tc`.

The bridge is not in the host's namespace, so the host's firewall (Docker's drops what crosses a bridge) does not see it, and
two networks with the same addresses do not see each other.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from datalocal.errors import ClusterError

_MOUNTS = Path("/run/netns")
_HOSTS = Path("/etc/netns")
_CLONE_NEWNET = 0x40000000
_SWITCH = "switch"
INTERFACE = "e0"
"""The one interface, beside `lo`, of every host."""


def missing() -> str:
    """What this machine lacks for network namespaces, in words; empty when nothing."""
    if sys.platform != "linux":
        return "Linux"
    if os.geteuid() != 0:
        return "root"
    for tool, package in (("ip", "iproute2"), ("tc", "iproute2"), ("setpriv", "util-linux")):
        if shutil.which(tool) is None:
            return f"the command `{tool}` (package {package})"
    return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """One host's address and the rate of its link, each way; None: as fast as the machine."""

    address: str
    rate_mbit: float | None = None


class Network:
    """The namespaces of one cluster, all named after `folder`: two clusters, and two homes, never meet."""

    def __init__(self, folder: Path) -> None:
        self._tag = "dl" + hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:8]

    def namespace(self, host: str) -> str:
        """Name of the host's namespace, as `ip netns` knows it."""
        return f"{self._tag}-{host}"

    def command(self, host: str) -> list[str]:
        """What to put before a command that is to run on `host`; the started process is the command itself."""
        return ["ip", "netns", "exec", self.namespace(host)]

    @property
    def hosts(self) -> list[str]:
        """The hosts that have a namespace now."""
        if not _MOUNTS.is_dir():
            return []
        found = sorted(path.name for path in _MOUNTS.iterdir() if path.name.startswith(f"{self._tag}-"))
        return [name.removeprefix(f"{self._tag}-") for name in found if not name.endswith(f"-{_SWITCH}")]

    def create(self, links: Mapping[str, Link], prefix_length: int) -> None:
        """Make a namespace with one interface for every host, all on one bridge, and shape the links.

        Raises ClusterError: not Linux or not root, or what `ip` and `tc` say.
        """
        if told := missing():
            raise ClusterError(
                f"network namespaces cannot be made: this needs {told}",
                "run as root on Linux with iproute2, or use a cluster config of `kind: embedded`",
            )
        switch = self.namespace(_SWITCH)
        names = "".join(f"{link.address} {host}\n" for host, link in links.items())
        try:
            self._make(switch)
            _run("ip", "-n", switch, "link", "add", "br0", "type", "bridge")
            _run("ip", "-n", switch, "link", "set", "br0", "up")
            for number, (host, link) in enumerate(links.items()):
                self._make(self.namespace(host))
                self._connect(host, link, prefix_length, f"p{number}")
                hosts = _HOSTS / self.namespace(host) / "hosts"
                hosts.parent.mkdir(parents=True, exist_ok=True)
                own = f"{link.address} {os.uname().nodename}\n"
                hosts.write_text(f"127.0.0.1 localhost\n{names}{own}", encoding="utf-8")
        except BaseException:
            self.remove()
            raise

    def remove(self) -> list[str]:
        """Kill what still runs in the namespaces, remove them with all that `create` made; the hosts that were there.

        Safe to call at any time, also when nothing is there.
        """
        hosts = self.hosts
        names = [self.namespace(host) for host in hosts]
        if (_MOUNTS / self.namespace(_SWITCH)).exists():
            names.append(self.namespace(_SWITCH))
        for name in names:
            _kill_all_in(name)
            _ip("netns", "del", name)
        for folder in _HOSTS.glob(f"{self._tag}-*") if _HOSTS.is_dir() else ():
            shutil.rmtree(folder, ignore_errors=True)
        return hosts

    @contextlib.contextmanager
    def entered(self, host: str) -> Iterator[None]:
        """This thread, and threads that it starts meanwhile, are on `host`. Raises ClusterError when it is not there."""
        name = self.namespace(host)
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            try:
                there = os.open(_MOUNTS / name, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                raise ClusterError(
                    f"the network namespace {name} is gone",
                    "take the cluster down and up again: datalocal cluster down",
                ) from None
            try:
                _set_namespace(there)
            finally:
                os.close(there)
            try:
                yield
            finally:
                _set_namespace(before)
        finally:
            os.close(before)

    def _make(self, name: str) -> None:
        _run("ip", "netns", "add", name)
        _run("ip", "-n", name, "link", "set", "lo", "up")

    def _connect(self, host: str, link: Link, prefix_length: int, port: str) -> None:
        own, switch = self.namespace(host), self.namespace(_SWITCH)
        ends = ("name", INTERFACE, "netns", own, "type", "veth", "peer", "name", port, "netns", switch)
        _run("ip", "link", "add", *ends)
        _run("ip", "-n", switch, "link", "set", port, "master", "br0", "up")
        _run("ip", "-n", own, "addr", "add", f"{link.address}/{prefix_length}", "dev", INTERFACE)
        _run("ip", "-n", own, "link", "set", INTERFACE, "up")
        if link.rate_mbit is not None:
            _shape(own, INTERFACE, link.rate_mbit)  # what the host sends
            _shape(switch, port, link.rate_mbit)  # what it receives


def _shape(namespace: str, device: str, rate_mbit: float) -> None:
    """A token bucket of 4 ms, at least two segments of 64 kB as the kernel hands them over; packets wait 100 ms at most."""
    burst = max(131_072, int(rate_mbit * 1e6 / 8 * 0.004))
    shape = ("tbf", "rate", f"{round(rate_mbit * 1000)}kbit", "burst", f"{burst}", "latency", "100ms")
    _run("tc", "-n", namespace, "qdisc", "replace", "dev", device, "root", *shape)


def _run(*command: str) -> None:
    done = subprocess.run(list(command), capture_output=True, text=True, check=False)
    if done.returncode:
        told = (done.stderr or done.stdout).strip().partition("\n")[0]
        raise ClusterError(
            f"`{' '.join(command)}` failed: {told}", "does the kernel have network namespaces, veth, bridge and tbf?"
        )


def _ip(*arguments: str) -> str:
    """What `ip` prints; nothing where it fails."""
    command = ["ip", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def _kill_all_in(namespace: str) -> None:
    """End every process of the namespace: ranks and daemons that nobody remembers any more are there too."""
    for _ in range(3):  # what forks while it is killed is found the next time
        pids = [int(line) for line in _ip("netns", "pids", namespace).split() if int(line) != os.getpid()]
        if not pids:
            return
        victims = []
        for pid in pids:
            with contextlib.suppress(psutil.Error, ProcessLookupError):
                victims.append(psutil.Process(pid))
                os.kill(pid, signal.SIGKILL)
        psutil.wait_procs(victims, timeout=5)


def _set_namespace(descriptor: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)  # os.setns came with Python 3.12
    if libc.setns(descriptor, _CLONE_NEWNET):
        number = ctypes.get_errno()
        raise ClusterError(f"a network namespace cannot be entered: {os.strerror(number)}", "this needs root")
