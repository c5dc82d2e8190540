"""One node's folder: which paths are allowed, how a file comes into being whole or not at all, how much room there is."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa

from datalocal.errors import StorageError
from datalocal.units import format_bytes

_INCOMING = ".incoming"
_LIMITS = ".limits.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What writes must leave free on the disk, and how much the node's folder may hold (None: the whole disk)."""

    free_disk_floor_bytes: int = 0
    disk_bytes: int | None = None


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is none of the data (`_SUCCESS`, `.part-0.parquet.crc`)."""
    return name.startswith((".", "_"))


def is_unnamed(file: Path) -> bool:
    """Whether this is an open file that has no name (`O_TMPFILE`), as `Folder.adopt` takes it."""
    return file.is_relative_to("/proc/self/fd") and file.stat().st_nlink == 0


def check_path(path: str, node: str) -> None:
    """Refuse a path that is not plainly below the data folder, before it touches the disk. Raises StorageError."""
    parts = path.split("/")
    if path.startswith("/"):
        problem = "is absolute"
    elif ".." in parts:
        problem = "leads upwards"
    elif not all(parts) or "\0" in path:
        problem = "is not a path"
    elif any(is_hidden(part) for part in parts):
        problem = "has a hidden part"
    else:
        return
    raise StorageError(
        f"{node}: refused: the path {path!r} {problem}", "paths are `data set/shard`, below the node's store"
    )


class Folder:
    """A node's folder on its disk. Paths are relative to its `data/`. Safe for several threads and processes of the node."""

    def __init__(self, node: str, root: Path) -> None:
        self.node, self.root = node, root
        self.data = root / "data"
        self._incoming = self.data / _INCOMING

    def resolve(self, path: str) -> Path:
        """Where `path` lies. Raises StorageError when it escapes the folder, by its text or through a symbolic link."""
        check_path(path, self.node)
        try:
            real = (self.data / path).resolve()
        except OSError as error:
            raise self._failed(path, error) from None
        if not real.is_relative_to(self.data.resolve()):
            raise StorageError(f"{self.node}: refused: {path} leads out of the node's folder through a symbolic link")
        return real

    def open(self, path: str) -> pa.NativeFile:
        """The file at `path`, for reading. Raises StorageError."""
        real = self.resolve(path)
        try:
            if not stat.S_ISREG(real.stat().st_mode):
                raise StorageError(f"{self.node}: {path} is not a file")
            # Not a memory map: a file cut short under a map is a SIGBUS, under a read it is an error.
            return pa.OSFile(str(real), "rb")
        except OSError as error:
            raise self._failed(path, error) from None

    def prepare(self, limits: Limits) -> None:
        """Make the folder ready to be served: store its limits, remove what interrupted writes left behind."""
        try:
            self._incoming.mkdir(parents=True, exist_ok=True)
            temporary = self._incoming / uuid.uuid4().hex
            temporary.write_text(json.dumps(asdict(limits)))
            temporary.replace(self.root / _LIMITS)
            with self._locked():
                for left in self._incoming.iterdir():
                    if left.is_dir():
                        shutil.rmtree(left, ignore_errors=True)
                    elif left.name != ".lock" and _abandoned(left):
                        left.unlink(missing_ok=True)
        except OSError as error:
            raise StorageError(
                f"{self.node}: the folder {self.root} cannot be used: {error.strerror or error}",
                "the node's process must be able to write there",
            ) from None

    def scratch(self) -> Path:
        """Where files without a name may be kept for a while, on the node's own disk."""
        self._incoming.mkdir(parents=True, exist_ok=True)
        return self._incoming

    def check_space(self, path: str, needed_bytes: int, *, there_bytes: int = 0) -> None:
        """Raises StorageError naming node, needed and free bytes when a file of this size may not be written.

        `there_bytes` of it are on the disk already, in a file without a name.
        """
        limits = self._limits()
        disk = os.statvfs(_existing(self.data))
        free = disk.f_bavail * disk.f_frsize + there_bytes - limits.free_disk_floor_bytes
        if limits.disk_bytes is not None:
            free = min(free, limits.disk_bytes - _used_bytes(self.root))
        if needed_bytes > free:
            raise self._full(path, needed_bytes, max(0, free), limits)

    @contextlib.contextmanager
    def create(self, path: str, size_bytes: int) -> Iterator[BinaryIO]:
        """A file to write `size_bytes` into; it appears at `path`, whole and on disk, when the context ends without an error.

        Its room is reserved before the first byte. Raises StorageError: no room, or another number of bytes was written.
        """
        final = self.resolve(path)
        temporary = self._incoming / uuid.uuid4().hex
        try:
            file = self._reserve(path, temporary, size_bytes)
            try:
                with file:
                    yield file
                    if file.tell() != size_bytes:
                        raise StorageError(
                            f"{self.node}: {path}: {file.tell()} of {size_bytes} bytes arrived, nothing was kept"
                        )
                    file.flush()
                    os.fsync(file.fileno())
                    with self._locked():  # or `delete` might take the parent away in between
                        final.parent.mkdir(parents=True, exist_ok=True)
                        temporary.replace(final)
                with contextlib.suppress(FileNotFoundError):  # deleted again meanwhile
                    _sync_folder(final.parent)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                disk = os.statvfs(_existing(self.data))
                raise self._full(path, size_bytes, disk.f_bavail * disk.f_frsize, self._limits()) from None
            raise self._failed(path, error) from None

    def adopt(self, path: str, unnamed: Path, size_bytes: int) -> bool:
        """Let a finished file without a name (`/proc/self/fd/N`) appear at `path`, whole and on disk, without copying it.

        False, and nothing was done, when it lies on another file system or on one that cannot name it. Raises StorageError: no
        room for it within the node's limits.
        """
        final = self.resolve(path)
        temporary = self._incoming / uuid.uuid4().hex
        try:
            self._incoming.mkdir(parents=True, exist_ok=True)
            with unnamed.open("rb") as file, self._locked():  # under the lock nobody takes it for a leftover
                self.check_space(path, size_bytes, there_bytes=size_bytes)
                try:
                    _link(unnamed, temporary)
                except OSError:
                    return False
                try:
                    os.fsync(file.fileno())
                    final.parent.mkdir(parents=True, exist_ok=True)
                    temporary.replace(final)
                finally:
                    temporary.unlink(missing_ok=True)
            with contextlib.suppress(FileNotFoundError):  # deleted again meanwhile
                _sync_folder(final.parent)
        except OSError as error:
            raise self._failed(path, error) from None
        return True

    def delete(self, dataset: str) -> None:
        """Remove a data set: gone from sight at once, then from the disk. What is not there is no error."""
        real = self.resolve(dataset)
        doomed = self._incoming / uuid.uuid4().hex
        try:
            self._incoming.mkdir(parents=True, exist_ok=True)
            with self._locked():
                real.rename(doomed)
                _remove_empty(real.parent, self.data.resolve())
        except FileNotFoundError:
            return
        except OSError as error:
            raise self._failed(dataset, error) from None
        if doomed.is_dir():
            shutil.rmtree(doomed, ignore_errors=True)
        else:
            doomed.unlink()

    def _reserve(self, path: str, temporary: Path, size_bytes: int) -> BinaryIO:
        """Create the hidden file with its full size, so that two writers never share the same free space."""
        self._incoming.mkdir(parents=True, exist_ok=True)
        with self._locked():
            self.check_space(path, size_bytes)
            file = temporary.open("xb")
            try:
                fcntl.flock(file, fcntl.LOCK_EX)  # held while the writer lives: tells it from a leftover
                if size_bytes:
                    os.posix_fallocate(file.fileno(), 0, size_bytes)
            except BaseException:
                file.close()
                temporary.unlink(missing_ok=True)
                raise
        return file

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with (self._incoming / ".lock").open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _limits(self) -> Limits:
        try:
            return Limits(**json.loads((self.root / _LIMITS).read_text()))
        except FileNotFoundError:  # nobody serves this folder yet
            return Limits()

    def _full(self, path: str, needed_bytes: int, free_bytes: int, limits: Limits) -> StorageError:
        kept = (
            f" (keeping {limits.free_disk_floor_bytes} bytes of the disk free)" if limits.free_disk_floor_bytes else ""
        )
        capacity = f" of {limits.disk_bytes} bytes of disk_bytes" if limits.disk_bytes is not None else ""
        return StorageError(
            f"{self.node}: disk full: {path} needs {needed_bytes} bytes ({format_bytes(needed_bytes)}), "
            f"{free_bytes} bytes ({format_bytes(free_bytes)}) are free{capacity}{kept}",
            f"make room on {self.node}, or change disk_bytes or free_disk_floor_bytes in the cluster config",
        )

    def _failed(self, path: str, error: OSError) -> StorageError:
        if isinstance(error, FileNotFoundError):
            return StorageError(f"{self.node}: {path}: there is no such file")
        return StorageError(f"{self.node}: {path}: {error.strerror or error}")


def _link(unnamed: Path, name: Path) -> None:
    """linkat(AT_SYMLINK_FOLLOW); without a folder's descriptor Python would call link(), which does not follow."""
    folder = os.open(name.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.link(unnamed, name.name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=True)
    finally:
        os.close(folder)


def _abandoned(file: Path) -> bool:
    """Whether no living writer holds this hidden file."""
    with file.open("rb") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


def _remove_empty(folder: Path, top: Path) -> None:
    """Remove `folder` and those above it, up to `top`, as long as they are empty."""
    while folder != top:
        try:
            folder.rmdir()
        except OSError:  # other data sets live there
            return
        folder = folder.parent


def _existing(path: Path) -> Path:
    """`path`, or the nearest folder above it that is there."""
    while not path.exists():
        path = path.parent
    return path


def _used_bytes(folder: Path) -> int:
    """Sizes of all files below `folder`; what vanishes meanwhile does not count."""
    total, todo = 0, [folder]
    while todo:
        try:
            with os.scandir(todo.pop()) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        todo.append(Path(entry.path))
                    else:
                        total += entry.stat(follow_symlinks=False).st_size
        except FileNotFoundError:
            continue
    return total


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
