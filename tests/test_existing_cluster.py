"""A cluster whose head and workers are commands: joined over TLS, who may come in and who may not, a job through it."""

from __future__ import annotations

import contextlib
import shutil
import socket
import sysconfig
import threading
import venv
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import yaml
from distributed import Client

import datalocal
from datalocal.errors import RunCancelled
from datalocal.execution.base import gpu, training_slot
from datalocal.execution.leases import Leases
from datalocal.execution.security import security
from datalocal.launch.certificates import make
from datalocal.launch.existing import own_tls
from datalocal.spec.cluster import load_cluster
from tests import joining, worlds
from tests.joining import JoinedWorld

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("joined")]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[JoinedWorld]:
    made = JoinedWorld(tmp_path_factory.mktemp("joined"))
    try:
        yield made
    finally:
        made.close()


def without_node2(world: JoinedWorld) -> None:
    worker = world.workers.pop("node2", None)
    if worker is not None:
        worker.stop()


def with_node2(world: JoinedWorld) -> None:
    if "node2" not in world.workers:
        world.workers["node2"] = world.worker("node2")
        world.workers["node2"].wait_for("node2 joined")


def test_doctor_proves_it_and_a_job_runs_through_it(world: JoinedWorld, tmp_path: Path) -> None:
    doctor = world.run("doctor")
    states = {check["check"]: check["state"] for check in doctor["checks"]}
    assert doctor["ok"], doctor
    for node in world.cluster.nodes:
        for what in ("host mapping", "ports", "disk", "share"):
            assert states[f"{node.name}: {what}"] == "ok"
    images = worlds.image_folder(tmp_path / "images", count=60)
    assert world.run("ingest", str(images), "pictures")["images"] == 60
    report = world.run("submit", str(worlds.job_file(tmp_path / "job", train={"epochs": 1})))
    assert [(arm["policy"], arm["state"]) for arm in report["arms"]] == [("data-local", "completed")]
    assert world.cluster.token_file is not None
    token = Path(world.cluster.token_file).read_text().strip()
    for path in world.home.rglob("*"):
        assert not path.is_file() or token.encode() not in path.read_bytes(), f"the token is in {path}"


def test_all_of_it_listens_on_its_own_address_behind_tls_and_the_token_is_nowhere(world: JoinedWorld) -> None:
    with_node2(world)
    assert world.cluster.token_file is not None
    token = Path(world.cluster.token_file).read_text().strip()
    for name, command in {"head": world.head, **world.workers}.items():
        process = psutil.Process(command.process.pid)
        assert token not in " ".join([*process.cmdline(), *process.environ().values(), command.text]), name
        listening = [each.laddr for each in process.net_connections("tcp") if each.status == psutil.CONN_LISTEN]
        assert len(listening) >= 2
        assert {address.ip.removeprefix("::ffff:") for address in listening} == {"127.0.0.1"}
    port = int(str(world.cluster.scheduler).rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=5) as plain:
        plain.sendall(b"\0" * 64)
        plain.settimeout(10)
        with contextlib.suppress(ConnectionResetError):
            assert plain.recv(1024)[:1] in {b"", b"\x15"}, "plain TCP is answered with an alert or not at all"


def test_a_worker_with_a_certificate_of_another_authority_is_refused(world: JoinedWorld, tmp_path: Path) -> None:
    without_node2(world)
    other = joining.config(tmp_path, scheduler=world.cluster.scheduler)
    make(load_cluster(other), folder=None, days=10)
    code, said = world.worker("node2", "--wait", "5", file=other).end()
    assert code == 3 and "does not vouch for" in said and str(tmp_path / "tls" / "ca.pem") in said
    # It knows the cluster's authority, and has no certificate of it: now it is the head that refuses.
    shutil.copy(world.folder / "tls" / "ca.pem", tmp_path / "tls" / "ca.pem")
    code, said = world.worker("node2", "--wait", "5", file=other).end()
    assert code == 3 and "refused the certificate" in said and str(tmp_path / "tls" / "node2.pem") in said


def test_a_worker_without_a_certificate_says_which_file_it_lacks(world: JoinedWorld, tmp_path: Path) -> None:
    without_node2(world)
    other = joining.config(tmp_path, scheduler=world.cluster.scheduler)
    (tmp_path / "tls").mkdir()
    shutil.copy(world.folder / "tls" / "token", tmp_path / "tls" / "token")
    shutil.copy(world.folder / "tls" / "ca.pem", tmp_path / "tls" / "ca.pem")
    code, said = world.worker("node2", file=other).end()
    assert code == 3 and str(tmp_path / "tls" / "node2.pem") in said and "datalocal cluster certificates" in said


def test_a_worker_of_another_version_is_refused_with_both_named(world: JoinedWorld) -> None:
    without_node2(world)
    code, said = world.worker("node2", before="import datalocal; datalocal.__version__ = '0.0.1'").end()
    assert code == 3
    assert "node2 runs Python" in said and "0.0.1" in said and datalocal.__version__ in said
    assert "environment" in said, "and what to do about it"


def test_a_name_that_is_taken_and_one_that_the_head_does_not_know_are_refused(
    world: JoinedWorld, tmp_path: Path
) -> None:
    with_node2(world)
    code, said = world.worker("node1", "--folder", str(tmp_path / "second")).end()
    assert code == 3 and "node1" in said and "another worker" in said
    text = world.file.read_text().replace("name: node2", "name: node7")
    other = world.folder / "other.yaml"
    other.write_text(text)
    make(load_cluster(other), folder=None, days=10)
    code, said = world.worker("node7", file=other).end()
    assert code == 3 and "no node 'node7'" in said


def test_a_node_steps_back_as_its_share_says_and_ends_in_order(world: JoinedWorld) -> None:
    without_node2(world)
    worker = world.worker("node2", "--nice", "7", "--ionice", "idle", "--memory", "1000000000")
    worker.wait_for("node2 joined")
    process = psutil.Process(worker.process.pid)
    assert process.nice() >= 7 and process.ionice().ioclass == psutil.IOPRIO_CLASS_IDLE
    assert worker.stop() == 0


def test_a_worker_runs_in_the_environment_that_the_file_names(world: JoinedWorld, tmp_path: Path) -> None:
    without_node2(world)
    environment = tmp_path / "environment"
    venv.create(environment, with_pip=False)
    (packages,) = environment.glob("lib/python*/site-packages")
    (packages / "ours.pth").write_text(f"{Path(datalocal.__file__).parent.parent}\n{sysconfig.get_path('purelib')}\n")
    file = world.folder / "environment.yaml"
    content = yaml.safe_load(world.file.read_text())
    content["nodes"][1]["environment"] = str(environment)
    file.write_text(yaml.safe_dump(content))
    worker = world.worker("node2", file=file)
    worker.wait_for("node2 joined")
    assert psutil.Process(worker.process.pid).cmdline()[0] == str(environment / "bin" / "python")
    assert worker.stop() == 0
    archive = shutil.make_archive(str(tmp_path / "packed"), "gztar", environment)
    file.write_text(file.read_text().replace(str(environment), archive))
    worker = world.worker("node2", file=file)
    worker.wait_for("node2 joined")
    assert Path(psutil.Process(worker.process.pid).cmdline()[0]).is_relative_to(
        world.folder / "disks/node2/environments"
    )
    assert worker.stop() == 0
    file.write_text(file.read_text().replace(archive, str(environment)))
    shutil.rmtree(environment)
    code, said = world.worker("node2", file=file).end()
    assert code == 3 and f"there is no {environment}/bin/python" in said


def test_a_dask_scheduler_that_already_runs_is_a_head_and_its_own_workers_are_left_alone(tmp_path: Path) -> None:
    theirs = JoinedWorld(tmp_path, scheduler_of_others=True)
    job = str(worlds.job_file(tmp_path / "job", train=False))
    try:
        theirs.join_all()
        images = worlds.image_folder(tmp_path / "images", count=60)
        assert theirs.run("ingest", str(images), "pictures")["images"] == 60
        (arm,) = theirs.run("submit", job)["arms"]
        assert arm["state"] == "completed"
        assert {row["destination"] for row in arm["bytes"] if row["class"] == "input"} == set(joining.STORAGE)
    finally:
        theirs.close()


def test_a_gang_waits_for_the_training_slots_that_another_run_has(world: JoinedWorld, tmp_path: Path) -> None:
    with_node2(world)
    images = worlds.image_folder(tmp_path / "images", count=30)
    world.run("ingest", str(images), "few", "--overwrite")
    job = worlds.job_file(tmp_path / "job", dataset="few", preprocess=False, train={"epochs": 1, "validation": None})
    tls = own_tls(world.cluster, "client")
    client = Client(world.cluster.scheduler, set_as_default=False, security=security(tls))
    run = world.home / "waits"
    try:
        with Leases(client, "the-other").hold([training_slot("node2", 1)], lambda: False):
            world.start("head", ["submit", str(job), "--cluster", str(world.file), "--run-id", "waits"])
            joining.wait_until(
                lambda: _log(run).count("waiting for a training slot of node2, which the-other holds") > 0
            )
            assert '"type": "rank"' not in (run / "arms" / "data-local" / "events.jsonl").read_text()
        joining.wait_until((run / "COMPLETED").exists)
    finally:
        client.close(timeout=5)


def _log(run: Path) -> str:
    path = run / "run.log"
    return path.read_text() if path.exists() else ""


def test_two_runs_do_not_meet_on_one_gpu(world: JoinedWorld) -> None:
    tls = own_tls(world.cluster, "client")
    clients = [Client(world.cluster.scheduler, set_as_default=False, security=security(tls)) for _ in range(2)]
    first, second = (Leases(client, f"run{place}") for place, client in enumerate(clients))
    looked, entered = threading.Event(), threading.Event()

    def not_cancelled() -> bool:
        looked.set()
        return False

    def waits_then_holds() -> None:
        with second.hold([gpu("b"), gpu("a")], not_cancelled):
            entered.set()

    waiting = threading.Thread(target=waits_then_holds)
    try:
        with first.hold([gpu("a")], lambda: False):
            waiting.start()
            assert looked.wait(30), "the second run asks whether it is cancelled while it waits"
            assert not entered.is_set()
            with pytest.raises(RunCancelled), second.hold([gpu("a")], lambda: True):
                raise AssertionError("two runs hold the same GPU")
        assert entered.wait(30), "what the first gave back, the second gets"
        waiting.join(10)
        with first.hold([gpu("a"), gpu("b")], lambda: False):
            pass
    finally:
        for client in clients:
            client.close(timeout=5)


def test_a_worker_ends_with_the_reason_when_its_head_is_gone(tmp_path: Path) -> None:
    own = JoinedWorld(tmp_path)
    try:
        own.head.stop()
        code, said = own.workers["node1"].end()
        assert code == 3 and "is gone" in said
    finally:
        own.close()
