"""The job's code: what is packed, how it reaches a node, and that jobs in one process do not see each other's modules."""

from __future__ import annotations

import io
import os
import sys
import tarfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from datalocal.errors import SpecError, StorageError, TaskError
from datalocal.storage.counting import ByteCounter
from datalocal.storage.sink import Sink, SinkClient
from datalocal.tasks.code import ensure_code, load_target, pack
from datalocal.tasks.model import NodeContext
from tests.preprocess_bench import TOKEN, Kept

LIMIT = 1_000_000


def names(packed: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        return tar.getnames()


def write(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        path = folder / name.replace("__", "/").replace("_py", ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


@pytest.fixture(autouse=True)
def _leave_no_module_behind() -> Iterator[None]:
    yield
    load_target("math:pi", None)


def test_the_hash_depends_on_names_and_contents_only(tmp_path: Path) -> None:
    one = write(tmp_path / "one", a_py="x = 1", lib__b_py="y = 2")
    two = write(tmp_path / "two", lib__b_py="y = 2", a_py="x = 1")
    for path in two.rglob("*.py"):
        os.utime(path, (1, 1))
    assert pack(one, LIMIT) == pack(two, LIMIT)
    (two / "a.py").write_text("x = 3")
    assert pack(one, LIMIT)[0] != pack(two, LIMIT)[0]


def test_what_is_no_code_stays_at_home_and_the_ignore_file_has_the_last_word(tmp_path: Path) -> None:
    job = write(tmp_path / "job", model_py="", notes__keep_py="", notes__drop_py="", data__big_py="")
    for name in (
        ".git/config",
        "__pycache__/model.pyc",
        ".venv/x.py",
        "venv/x.py",
        "runs/r/run.json",
        "node_modules/m.js",
        ".env",
    ):
        (job / name).parent.mkdir(parents=True, exist_ok=True)
        (job / name).write_text("secret")
    assert names(pack(job, LIMIT)[1]) == ["data/big.py", "model.py", "notes/drop.py", "notes/keep.py"]
    (job / ".datalocalignore").write_text("# not code\ndata/\nnotes/*\n!notes/keep.py\n!runs/\n")
    assert names(pack(job, LIMIT)[1]) == ["model.py", "notes/keep.py", "runs/r/run.json"]


def test_a_folder_over_the_limit_names_its_largest_files_and_is_not_packed_to_its_end(tmp_path: Path) -> None:
    job = write(tmp_path / "job", a_py="x = 1")
    (job / "model.bin").write_bytes(os.urandom(300_000))
    with (job / "zz.bin").open("wb") as sparse:
        sparse.truncate(1 << 40)  # a terabyte of zeros: who reads it never comes back
    with pytest.raises(SpecError, match=r"model.bin \(300 kB\)") as caught:
        pack(job, 100_000)
    assert ".datalocalignore" in caught.value.suggestion


def test_links_within_the_folder_stay_links_and_others_are_refused(tmp_path: Path) -> None:
    job = write(tmp_path / "job", lib__real_py="x = 1")
    (job / "alias.py").symlink_to(job / "lib" / "real.py")  # absolute, and still within
    with tarfile.open(fileobj=io.BytesIO(pack(job, LIMIT)[1])) as tar:
        assert tar.getmember("alias.py").linkname == "lib/real.py"
    (tmp_path / "secret.txt").write_text("secret")
    (job / "out.txt").symlink_to("../secret.txt")
    with pytest.raises(SpecError, match=r"out.txt: is a link to .*secret.txt, outside"):
        pack(job, LIMIT)
    (job / ".datalocalignore").write_text("out.txt\n")
    assert "out.txt" not in names(pack(job, LIMIT)[1])


class Node:
    """A node's context and its line to a sink."""

    def __init__(self, root: Path, code: dict[str, bytes]) -> None:
        self.sink = Sink(token=TOKEN, code=dict(code), handler=Kept())
        self.counter = ByteCounter()
        self.client = SinkClient(location=self.sink.location, token=TOKEN, node="a", counter=self.counter)
        self.ctx = NodeContext(name="a", root=root, token=TOKEN, cores=1, executor="test")

    def fetched_bytes(self) -> int:
        return sum(row.bytes for row in self.counter.rows() if row.source == "head")

    def close(self) -> None:
        self.client.close()
        self.sink.close()


@pytest.fixture
def job(tmp_path: Path) -> Path:
    return write(tmp_path / "job", model_py="x = 1", lib__b_py="y = 2")


@pytest.fixture(params=["tarfile's own filter", "by hand"])
def extracted(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.11.0 to 3.11.3 have no `tarfile.data_filter`."""
    if request.param == "by hand":
        monkeypatch.delattr(tarfile, "data_filter")


@pytest.mark.usefixtures("extracted")
def test_code_is_fetched_once_and_unpacked_whole(tmp_path: Path, job: Path) -> None:
    hash_, packed = pack(job, LIMIT)
    node = Node(tmp_path / "a", {hash_: packed})
    try:
        folder = ensure_code(hash_, node.ctx, node.client)
        assert folder == tmp_path / "a" / "code" / hash_
        assert (folder / "lib" / "b.py").read_text() == "y = 2"
        fetched = node.fetched_bytes()
        assert fetched >= len(packed)
        assert ensure_code(hash_, node.ctx, node.client) == folder
        assert node.fetched_bytes() == fetched, "the second time nothing travels"
        assert ensure_code("", node.ctx, node.client) is None
    finally:
        node.close()


def test_many_tasks_that_need_the_code_at_once_fetch_it_once(tmp_path: Path, job: Path) -> None:
    hash_, packed = pack(job, LIMIT)
    node = Node(tmp_path / "a", {hash_: packed})
    ready = threading.Barrier(8)

    def need(_: int) -> Path | None:
        ready.wait()
        return ensure_code(hash_, node.ctx, node.client)

    try:
        with ThreadPoolExecutor(8) as pool:
            folders = set(pool.map(need, range(8)))
        assert folders == {tmp_path / "a" / "code" / hash_}
        assert node.fetched_bytes() < 2 * len(packed) + 1000
        assert [path.name for path in (tmp_path / "a" / "code").iterdir() if path.is_dir()] == [hash_]
    finally:
        node.close()


@pytest.mark.usefixtures("extracted")
def test_code_that_arrives_changed_or_would_leave_its_folder_is_refused(tmp_path: Path, job: Path) -> None:
    hash_, packed = pack(job, LIMIT)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        tar.addfile(tarfile.TarInfo("../../evil.py"))
    linked = io.BytesIO()
    with tarfile.open(fileobj=linked, mode="w:gz") as tar:
        link = tarfile.TarInfo("out")
        link.type, link.linkname = tarfile.SYMTYPE, "../../.."
        tar.addfile(link)
    import hashlib

    evil = hashlib.sha256(out.getvalue()).hexdigest()
    wicked = hashlib.sha256(linked.getvalue()).hexdigest()
    contents = {hash_: packed[:-1] + b"x", evil: out.getvalue(), wicked: linked.getvalue()}
    node = Node(tmp_path / "a", contents)
    try:
        with pytest.raises(StorageError, match="arrived changed"):
            ensure_code(hash_, node.ctx, node.client)
        with pytest.raises(StorageError, match="cannot be unpacked"):
            ensure_code(evil, node.ctx, node.client)
        with pytest.raises(StorageError, match="cannot be unpacked"):
            ensure_code(wicked, node.ctx, node.client)
        with pytest.raises(StorageError, match="is no hash"):
            ensure_code("../data", node.ctx, node.client)
        assert not list((tmp_path / "a").rglob("*.py"))
        assert not [path for path in (tmp_path / "a" / "code").iterdir() if path.is_dir()], "nothing half unpacked"
    finally:
        node.close()


def test_each_job_sees_its_own_modules_also_those_its_modules_import(tmp_path: Path) -> None:
    one = write(tmp_path / "one", mod_py="import helper\ndef f(): return helper.V", helper_py="V = 1", only_py="x = 1")
    two = write(tmp_path / "two", mod_py="import helper\ndef f(): return helper.V", helper_py="V = 2")
    assert [load_target("mod:f", folder)() for folder in (one, two, one)] == [1, 2, 1]
    with pytest.raises(TaskError, match="No module named 'only'"):
        load_target("only:x", two)
    with pytest.raises(TaskError, match="brings no code"):
        load_target("mod:f", None)
    assert str(one) not in sys.path and str(two) not in sys.path


def test_loading_twice_from_one_folder_gives_the_same_object(tmp_path: Path) -> None:
    one = write(tmp_path / "one", mod_py="f = object()")
    assert load_target("mod:f", one) is load_target("mod:f", one)


def test_the_same_code_on_two_nodes_of_one_process_is_loaded_once(tmp_path: Path) -> None:
    hash_ = "0" * 64
    folders = [write(tmp_path / node / hash_, mod_py="f = object()") for node in ("a", "b")]
    assert load_target("mod:f", folders[0]) is load_target("mod:f", folders[1])


def test_installed_targets_load_with_and_without_a_folder(tmp_path: Path) -> None:
    import json

    assert load_target("json:dumps", None) is json.dumps
    assert load_target("json:dumps", write(tmp_path / "job", mod_py="")) is json.dumps


@pytest.mark.parametrize(
    ("target", "says", "hint"),
    [
        ("modle:f", "ModuleNotFoundError: No module named 'modle'", "did you mean model"),
        ("model:trian", "has no 'trian'", "did you mean train"),
        ("needy:f", "No module named 'not_installed'", "mend the module"),
        ("typo:f", "SyntaxError", "mend the module"),
        ("leaves:f", "SystemExit", "mend the module"),
        ("json:dumps", "Python already has another one of that name", "rename json.py"),
    ],
)
def test_what_cannot_be_loaded_names_node_target_folder_and_a_way_out(
    tmp_path: Path, target: str, says: str, hint: str
) -> None:
    job = write(
        tmp_path / "job",
        model_py="def train(): ...",
        needy_py="import not_installed",
        typo_py="def f(:",
        leaves_py="raise SystemExit(3)",
        json_py="def dumps(x): return 'mine'",
    )
    with pytest.raises(TaskError, match=says) as caught:
        load_target(target, job, node="node7")
    assert hint in caught.value.hint and caught.value.node == "node7"
    assert str(job) in str(caught.value)
    assert "datalocal/tasks" not in caught.value.trace and "importlib" not in caught.value.trace


def test_a_module_that_fails_half_way_is_tried_afresh_after_it_was_mended(tmp_path: Path) -> None:
    one = write(tmp_path / "one", mod_py="1 / 0")
    with pytest.raises(TaskError, match="ZeroDivisionError"):
        load_target("mod:f", one)
    two = write(tmp_path / "two", mod_py="f = 5")
    found: Any = load_target("mod:f", two)
    assert found == 5
