"""The embedded cluster as processes: up, found, healed, down; loopback only; no node opens another node's folder."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from datalocal.errors import ClusterError
from datalocal.launch import embedded
from datalocal.launch.process import Identity, Starting, stop
from datalocal.spec.cluster import Cluster, load_cluster
from datalocal.storage.counting import ByteCounter
from tests import worlds

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("cluster")]


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return load_cluster(worlds.cluster_file(tmp_path, storage=2, compute=1))


@pytest.fixture
def home(tmp_path: Path, cluster: Cluster) -> Iterator[Path]:
    yield tmp_path / "home"
    embedded.down(tmp_path / "home", cluster.name)


def test_up_finds_heals_and_down_leaves_no_process_but_the_data(home: Path, cluster: Cluster) -> None:
    first = embedded.up(cluster, home)
    found = embedded.find(home, cluster.name)
    assert found is not None and found.stores == first.stores
    again = embedded.up(cluster, home)
    assert again.processes == first.processes, "a cluster that is up is left as it is"
    os.kill(first.processes["node2"].pid, signal.SIGKILL)
    psutil.wait_procs([psutil.Process(first.processes["node2"].pid)], timeout=5)
    healed = embedded.up(cluster, home)
    assert healed.processes["node1"] == first.processes["node1"]
    assert healed.processes["node2"] != first.processes["node2"]
    marker = embedded.node_root(home, cluster.name, "node1") / "data" / "kept"
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.touch()
    assert set(embedded.down(home, cluster.name)) == {"head", "node1", "node2", "central1"}
    assert embedded.find(home, cluster.name) is None
    assert not any(identity.alive for identity in healed.processes.values())
    assert marker.exists()


def test_nothing_listens_beyond_loopback_and_the_token_is_in_no_argument_and_idle_nodes_rest(
    home: Path, cluster: Cluster
) -> None:
    handle = embedded.up(cluster, home)
    for identity in handle.processes.values():
        process = psutil.Process(identity.pid)
        for connection in process.net_connections(kind="inet"):
            if connection.status == psutil.CONN_LISTEN:
                assert connection.laddr.ip.removeprefix("::ffff:") in {"127.0.0.1", "::1"}, connection
        assert handle.token not in " ".join(process.cmdline())
        assert handle.token not in " ".join(process.environ().values())
    assert (handle.folder / "token").stat().st_mode & 0o077 == 0
    assert handle.token not in repr(handle)
    for log in (handle.folder / "logs").iterdir():
        assert handle.token not in log.read_text()
    assert_idle_nodes_rest(handle)


def assert_idle_nodes_rest(handle: embedded.ClusterHandle) -> None:
    """A node beside a DataNode costs no power while it has no task: dask, left as it is, wakes 150 times a second."""
    processes = [psutil.Process(identity.pid) for identity in handle.processes.values()]

    def wakes() -> int:
        return sum(process.num_ctx_switches().voluntary for process in processes)

    def rate() -> float:
        begin, before = time.monotonic(), wakes()
        while (seconds := time.monotonic() - begin) < 3:  # it is a rate
            time.sleep(0.5)
        return (wakes() - before) / seconds / len(processes)

    # Just after its start a node still has this and that to do; one that polls does it at any time.
    rates = [rate()]
    while min(rates) >= 40:
        assert len(rates) < 3, rates
        rates.append(rate())


def test_a_cluster_that_is_held_ends_with_its_owner_even_by_sigkill(
    home: Path, tmp_path: Path, cluster: Cluster
) -> None:
    script = (
        "import sys, time\nfrom pathlib import Path\nfrom datalocal.launch import embedded\n"
        "from datalocal.spec.cluster import load_cluster\n"
        f"embedded.up(load_cluster(Path({str(tmp_path / 'cluster.yaml')!r})), Path({str(home)!r}), hold=True, own=True)\n"
        "print('up', flush=True)\ntime.sleep(300)\n"
    )
    owner = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert owner.stdout is not None and owner.stdout.readline() == b"up\n"
    handle = embedded.find(home, cluster.name)
    assert handle is not None
    with pytest.raises(ClusterError, match="brought up by process"), embedded.running(cluster, home):
        pass
    processes = [psutil.Process(identity.pid) for identity in handle.processes.values()]
    owner.kill()
    owner.wait()
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert not alive


def test_a_port_in_use_is_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        head = Starting(
            "datalocal.launch.head",
            "head",
            tmp_path / "head.log",
            message={"port": port, "dashboard": False},
            hold=True,
        )
        with pytest.raises(ClusterError, match=str(port)):
            head.ready()
        head.process.wait(10)


def test_a_process_that_dies_at_its_start_is_told_with_its_log(tmp_path: Path) -> None:
    broken = Starting("datalocal.no_such_module", "node9", tmp_path / "node9.log", message={}, hold=True)
    with pytest.raises(ClusterError, match=r"node9 did not start.*no_such_module"):
        broken.ready()
    broken.process.wait(10)


def test_a_pid_that_was_given_to_another_process_is_not_ours() -> None:
    me = Identity.of(os.getpid())
    assert me is not None and me.alive
    stranger = Identity(pid=me.pid, created=me.created - 100)
    assert not stranger.alive
    stop([stranger])  # must not kill this test


def traced_python(folder: Path, traces: Path) -> Path:
    """A Python that is traced from its first instruction, children too, into `traces`/PID.

    With a filter in the kernel only the calls that are asked for stop a process; a tracer that attaches later stops it at every
    one, and importing torch makes hundreds of thousands.
    """
    script = folder / "traced-python"
    calls = "open,openat,openat2,creat,rename,renameat2,unlink"
    script.write_text(
        f'#!/bin/sh\nexec strace -D -f --seccomp-bpf -qq -y -e trace={calls} -o "{traces}/$$" "{sys.executable}" "$@"\n'
    )
    script.chmod(0o755)
    return script


def tracer_of(pid: int) -> psutil.Process:
    """The process that traces another one."""
    status = Path(f"/proc/{pid}/status").read_text()
    tracer = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("TracerPid:"))
    assert tracer, f"nobody traces {pid}"
    return psutil.Process(tracer)


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_no_nodes_process_opens_another_nodes_folder(home: Path, tmp_path: Path, cluster: Cluster) -> None:
    """A trace of every open of every process of the cluster while a job preprocesses and trains on it."""
    from datalocal import runner

    worlds.fill(home, tmp_path / "cluster.yaml", worlds.image_folder(tmp_path / "images", 60))
    traces = tmp_path / "traces"
    traces.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", str(traced_python(tmp_path, traces)))
        handle = embedded.up(cluster, home)
    pids = {name: identity.pid for name, identity in handle.processes.items() if name != "head"}
    try:
        tracers = [tracer_of(pid) for pid in pids.values()]
        run = runner.prepare(
            runner.RunRequest(
                job_file=worlds.job_file(tmp_path / "job"),
                cluster_file=tmp_path / "cluster.yaml",
                home=home,
                policies=("data-local", "central-nas"),
                run_id="traced",
            )
        )
        psutil.Process(runner.spawn(run)).wait(240)
        assert run.state["state"] == "completed", run.state
    finally:
        embedded.down(home, cluster.name)
    _, alive = psutil.wait_procs(tracers, timeout=20)
    assert not alive, "a trace is whole when its tracer is done"
    roots = {name: str(embedded.node_root(home, cluster.name, name).resolve()) for name in pids}
    for name in pids:
        text = (traces / str(pids[name])).read_text(errors="replace")
        assert re.search(rf"{re.escape(roots[name])}/", text), f"the trace of {name} saw nothing of its own folder"
        for other, root in roots.items():
            if other != name:
                assert f"{root}/" not in text, f"{name} opened something of {other}'s"
        assert f"{home}/traced/" not in text, f"{name} opened the run directory"


def test_the_headless_store_sees_every_node(home: Path, cluster: Cluster) -> None:
    handle = embedded.up(cluster, home)
    counter = ByteCounter()
    store = handle.store(counter)
    try:
        assert [store.datasets(node.name) for node in cluster.nodes] == [[], [], []]
    finally:
        store.close()
