"""The job's own code on its way to the nodes: its folder packed once, unpacked where a task needs it."""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import io
import os
import re
import shutil
import stat
import tarfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pathspec

from datalocal.errors import SpecError, StorageError
from datalocal.storage.sink import SinkClient
from datalocal.tasks.model import NodeContext
from datalocal.tasks.targets import load_target, user_trace
from datalocal.units import format_bytes

__all__ = ["pack", "ensure_code", "load_target", "user_trace"]

IGNORE_FILE = ".datalocalignore"

_IGNORED = (".*", "__pycache__/", "*.pyc", "venv/", "node_modules/", "runs/")
"""Left out unless the job's own ignore file takes them back (`!runs/`): nothing of it is code."""

_UNPACKING = ".unpacking-"


def pack(folder: Path, limit_bytes: int) -> tuple[str, bytes]:
    """The job's folder as (SHA-256 in hex, tar.gz). The same names and contents give the same bytes, whatever their times.

    `.datalocalignore` takes the patterns of `.gitignore`. Links within the folder stay links. Raises SpecError: a link leads
    out of the folder, a file cannot be read, or the archive is larger than `limit_bytes` (naming the largest files).
    """
    out = _Limited(limit_bytes)
    sizes: dict[str, int] = {}
    try:
        with (
            gzip.GzipFile(fileobj=out, mode="wb", filename="", mtime=0) as zipped,
            tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as tar,
        ):
            for name, path in _files(folder):
                _add(tar, name, path, folder, sizes)
    except _TooLarge:
        raise _too_large(folder, limit_bytes, sizes) from None
    packed = out.getvalue()
    return hashlib.sha256(packed).hexdigest(), packed


def ensure_code(hash: str, ctx: NodeContext, sink: SinkClient) -> Path | None:  # noqa: A002  # what it is
    """The node's folder with the unpacked code; fetched from the run process when this node has not got it yet.

    None for a job without code. Safe for several processes of the node at a time. Raises StorageError.
    """
    if not hash:
        return None
    if not re.fullmatch(r"[0-9a-f]{64}", hash):
        raise StorageError(f"{ctx.name}: {hash!r} is no hash of a job's code")
    home = ctx.root / "code"
    folder = home / hash
    if folder.is_dir():
        return folder
    try:
        home.mkdir(parents=True, exist_ok=True)
        with (home / ".lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # one process fetches; it ends, however it ends, and the next one goes on
            if not folder.is_dir():
                _unpack(_fetch(hash, ctx, sink), folder)
    except (OSError, tarfile.TarError) as error:
        raise StorageError(f"{ctx.name}: the job's code cannot be unpacked into {folder}: {error}") from None
    return folder


class _TooLarge(Exception):
    """The archive outgrew its limit."""


class _Limited(io.BytesIO):
    """Stops at the limit, so that a forgotten data set beside the code is not packed to its end."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__()
        self._limit_bytes = limit_bytes

    def write(self, chunk: Any) -> int:
        if self.tell() + len(chunk) > self._limit_bytes:
            raise _TooLarge
        return super().write(chunk)


def _add(tar: tarfile.TarFile, name: str, path: Path, folder: Path, sizes: dict[str, int]) -> None:
    entry = tarfile.TarInfo(name)  # no owner, no time: only what the code is
    if path.is_symlink():
        entry.type, entry.linkname = tarfile.SYMTYPE, _link_within(path, folder)
        tar.addfile(entry)
        return
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            entry.size, entry.mode = status.st_size, 0o755 if status.st_mode & stat.S_IXUSR else 0o644
            sizes[name] = entry.size
            tar.addfile(entry, file)
    except OSError as error:
        raise SpecError(str(path), "", f"cannot be read: {error}", f"or list it in {IGNORE_FILE}") from None


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    """(name in the archive, path) of all files and links that are not ignored, sorted by name."""
    ignore = folder / IGNORE_FILE
    own = ignore.read_text(encoding="utf-8").splitlines() if ignore.is_file() else []
    spec = pathspec.GitIgnoreSpec.from_lines([*_IGNORED, *own])
    found: list[tuple[str, Path]] = []
    for parent, folders, files in os.walk(folder):
        at = Path(parent)

        def keep(name: str, end: str, at: Path = at) -> bool:
            return not spec.match_file(f"{(at / name).relative_to(folder).as_posix()}{end}")

        folders[:] = [name for name in folders if keep(name, "/")]
        paths = [at / name for name in files if keep(name, "")] + [at / name for name in folders]
        found += [(path.relative_to(folder).as_posix(), path) for path in paths if path.is_symlink() or path.is_file()]
    return iter(sorted(found))


def _link_within(path: Path, folder: Path) -> str:
    target, top = path.resolve(), folder.resolve()
    if not target.is_relative_to(top):
        raise SpecError(
            str(path),
            "",
            f"is a link to {target}, outside the job's folder",
            f"copy it here, or list it in {IGNORE_FILE}",
        )
    return os.path.relpath(target, path.parent.resolve())


def _too_large(folder: Path, limit_bytes: int, sizes: dict[str, int]) -> SpecError:
    largest = sorted(sizes.items(), key=lambda item: -item[1])[:5]
    names = ", ".join(f"{name} ({format_bytes(size)})" for name, size in largest)
    return SpecError(
        str(folder),
        "code_limit_bytes",
        f"the job's folder packs to more than {limit_bytes} bytes ({format_bytes(limit_bytes)}); largest files: {names}",
        f"list what is no code in {IGNORE_FILE}, or raise code_limit_bytes in the job file",
    )


def _fetch(hash_: str, ctx: NodeContext, sink: SinkClient) -> bytes:
    packed = sink.get_code(hash_)
    found = hashlib.sha256(packed).hexdigest()
    if found != hash_:
        raise StorageError(f"{ctx.name}: the job's code arrived changed: hash {found[:12]}, expected {hash_[:12]}")
    return packed


def _unpack(packed: bytes, folder: Path) -> None:
    """Whole or not at all. The caller holds the lock: what else is being unpacked here was given up."""
    for left in folder.parent.glob(f"{_UNPACKING}*"):
        shutil.rmtree(left, ignore_errors=True)
    temporary = folder.parent / f"{_UNPACKING}{uuid.uuid4().hex}"
    try:
        temporary.mkdir()
        with tarfile.open(fileobj=io.BytesIO(packed), mode="r:gz") as tar:
            _extract(tar, temporary)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _extract(tar: tarfile.TarFile, folder: Path) -> None:
    """Files, folders and links that stay within `folder`, nothing else. Raises tarfile.TarError."""
    if hasattr(tarfile, "data_filter"):
        tar.extractall(folder, filter="data")
        return
    for member in tar:  # Python 3.11.0 to 3.11.3, Debian 12's among them, have no filter
        place = (folder / member.name).resolve()
        leads_to = (place.parent / member.linkname).resolve() if member.issym() else place
        inside = place.is_relative_to(folder.resolve()) and leads_to.is_relative_to(folder.resolve())
        if not inside or not (member.isreg() or member.isdir() or member.issym()):
            raise tarfile.ExtractError(f"{member.name} does not belong into a job's folder")
        tar.extract(member, folder)
