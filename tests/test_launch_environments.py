"""A Python environment as an archive: unpacked once by its content, and nothing of it lands elsewhere."""

from __future__ import annotations

import gzip
import io
import lzma
import random
import shutil
import subprocess
import tarfile
import threading
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

from datalocal.errors import ClusterError
from datalocal.launch.environments import unpacked


def pack(archive: Path, *members: tuple[str, bytes | None, str]) -> Path:
    """A tar of (name, content, link): a file with that content or, where it is None, a link; `=` before its target: a hard one."""
    with tarfile.open(archive, "w:gz") as tar:
        for name, content, link in members:
            info = tarfile.TarInfo(name)
            if content is None:
                info.type = tarfile.LNKTYPE if link.startswith("=") else tarfile.SYMTYPE
                info.linkname = link.removeprefix("=")
            else:
                info.size, info.mode = len(content), 0o755
            tar.addfile(info, io.BytesIO(content or b""))
    return archive


PYTHON = ("bin/python", b"#!/bin/sh\n", "")


@pytest.mark.parametrize("top", ["", "env"])
def test_a_packed_environment_runs_and_is_unpacked_once(tmp_path: Path, top: str) -> None:
    venv.create(tmp_path / "made", with_pip=False)
    with tarfile.open(tmp_path / "env.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "made", arcname=top or ".")
    prefixes: list[Path] = []
    several = [
        threading.Thread(target=lambda: prefixes.append(unpacked(tmp_path / "env.tar.gz", tmp_path / "there")))
        for _ in range(4)
    ]
    for thread in several:
        thread.start()
    for thread in several:
        thread.join()
    (prefix,) = set(prefixes)
    assert len(prefixes) == 4 and prefix.is_relative_to(tmp_path / "there")
    assert len(list((tmp_path / "there").iterdir())) == 1, "nothing half unpacked is left"
    command = [str(prefix / "bin" / "python"), "-c", "import sys; print(sys.prefix)"]
    assert Path(subprocess.check_output(command, text=True).strip()) == prefix


def test_other_content_is_another_environment(tmp_path: Path) -> None:
    first = unpacked(pack(tmp_path / "env.tar.gz", PYTHON), tmp_path / "there")
    (first / "mark").touch()
    second = unpacked(pack(tmp_path / "env.tar.gz", PYTHON, ("lib/more", b"x", "")), tmp_path / "there")
    assert first != second and not (second / "mark").exists()


@pytest.mark.parametrize(
    "members",
    [
        [("../outside", b"x", "")],
        [("lib/../../outside", b"x", "")],
        [("away", None, ".."), ("away/outside", b"x", "")],
        [("away", None, "{folder}"), ("away/outside", b"x", "")],
        [("mine", None, "=../../precious"), ("mine", b"x", "")],
    ],
)
def test_what_leads_out_is_refused_and_leaves_nothing(
    tmp_path: Path, members: list[tuple[str, bytes | None, str]]
) -> None:
    (tmp_path / "precious").write_text("as it was")
    told = [(name, content, link.replace("{folder}", str(tmp_path))) for name, content, link in members]
    with pytest.raises(ClusterError, match=r"env\.tar\.gz cannot be unpacked .*outside"):
        unpacked(pack(tmp_path / "env.tar.gz", PYTHON, *told), tmp_path / "there")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["env.tar.gz", "precious", "there"]
    assert list((tmp_path / "there").iterdir()) == []
    assert (tmp_path / "precious").read_text() == "as it was"


@pytest.mark.parametrize("compress", [bytes, gzip.compress, lzma.compress])
@pytest.mark.parametrize("damage", ["a flipped bit", "half of it"])
def test_a_damaged_archive_is_refused_whole(tmp_path: Path, compress: Callable[[bytes], bytes], damage: str) -> None:
    archive = tmp_path / "env.tar"
    with tarfile.open(archive, "w") as tar:
        for name in ("bin/python", *(f"lib/{number}" for number in range(20))):
            info = tarfile.TarInfo(name)
            info.size, info.mode = 1024, 0o755
            tar.addfile(info, io.BytesIO(random.Random(name).randbytes(1024)))
    content = bytearray(compress(archive.read_bytes()))
    if damage == "half of it":
        archive.write_bytes(content[: 1536 * 10])  # of the plain one: at the beginning of a member
    else:
        content[1536 * 10 + 20 if compress is bytes else len(content) // 2] ^= (
            1  # of the plain one: in a member's header
        )
        archive.write_bytes(content)
    with pytest.raises(ClusterError, match=r"env\.tar cannot be unpacked"):
        unpacked(archive, tmp_path / "there")
    assert list((tmp_path / "there").iterdir()) == []


def test_what_the_disk_must_keep_free_stays_free(tmp_path: Path) -> None:
    archive = pack(tmp_path / "env.tar.gz", PYTHON)
    floor = shutil.disk_usage(tmp_path).total
    with pytest.raises(ClusterError, match=r"bin/python needs 10 B, .* are to stay so"):
        unpacked(archive, tmp_path / "there", free_disk_floor_bytes=floor)
    assert list((tmp_path / "there").iterdir()) == []


def test_what_is_no_environment_says_so(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=r"holds no environment: there is no bin/python"):
        unpacked(pack(tmp_path / "a.tar.gz", ("readme", b"x", "")), tmp_path / "there")
    (tmp_path / "b.tar.gz").write_bytes(b"no tar")
    with pytest.raises(ClusterError, match="cannot be unpacked"):
        unpacked(tmp_path / "b.tar.gz", tmp_path / "there")
    with pytest.raises(ClusterError, match="cannot be read"):
        unpacked(tmp_path / "c.tar.gz", tmp_path / "there")
