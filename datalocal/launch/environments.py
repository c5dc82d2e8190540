"""A Python environment that travels as an archive: unpacked once, under the hash of its content, and never changed again."""

from __future__ import annotations

import hashlib
import lzma
import os
import shutil
import tarfile
import uuid
import zlib
from pathlib import Path

from datalocal.errors import ClusterError
from datalocal.units import format_bytes

_HASH_LETTERS = 16
_PACK_ONE = "make one with: tar -C /path/to/environment -czf environment.tar.gz ."


def unpacked(archive: Path, folder: Path, *, free_disk_floor_bytes: int = 0) -> Path:
    """The environment in `archive` (tar, also compressed), below `folder`: the folder that has `bin/python`.

    The same content is unpacked once, whole or not at all; several processes may ask at a time. Raises ClusterError: no tar, a
    damaged one, a member that would lie outside, no environment in it, a disk that would have less than the floor left.
    """
    target = folder / _digest(archive)
    if not target.is_dir():
        temporary = folder / f".{uuid.uuid4().hex}"
        try:
            temporary.mkdir(parents=True)
            with tarfile.open(archive) as tar:
                _extract(tar, temporary.resolve(), free_disk_floor_bytes)
                _check_end(tar)
            try:
                temporary.rename(target)
            except OSError:
                if not target.is_dir():  # else another process was quicker with the same
                    raise
        except (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError) as error:
            raise ClusterError(f"{archive} cannot be unpacked into {folder}: {error}", _PACK_ONE) from None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    for prefix in (target, *sorted(target.iterdir())):
        if os.access(prefix / "bin" / "python", os.X_OK):
            return prefix
    raise ClusterError(f"{archive} holds no environment: there is no bin/python in it", _PACK_ONE)


def _digest(archive: Path) -> str:
    try:
        with archive.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:_HASH_LETTERS]
    except OSError as error:
        raise ClusterError(f"the environment {archive} cannot be read: {error.strerror or error}") from None


def _extract(tar: tarfile.TarFile, folder: Path, free_disk_floor_bytes: int) -> None:
    """Files, folders and links whose places are within `folder`. Raises TarError.

    tarfile's own filters would not do: Debian 12's Python has none, and `data` refuses a link that leads out, as the
    `bin/python` of an environment does. Nothing is written through such a link: for each member it is looked at where its
    place really is.
    """
    trusted = {"filter": "fully_trusted"} if hasattr(tarfile, "fully_trusted_filter") else {}
    for member in tar:
        if not _is_inside(folder / member.name, folder):
            raise tarfile.ExtractError(f"{member.name} would lie outside")
        if member.islnk() and not _is_inside(folder / member.linkname, folder):
            raise tarfile.ExtractError(f"{member.name} is a hard link to {member.linkname}, which lies outside")
        if not (member.isreg() or member.isdir() or member.issym() or member.islnk()):
            raise tarfile.ExtractError(f"{member.name} is neither a file nor a folder nor a link")
        free = shutil.disk_usage(folder).free
        if member.size > free - free_disk_floor_bytes:
            raise tarfile.ExtractError(
                f"{member.name} needs {format_bytes(member.size)}, {format_bytes(free)} of the disk are free and "
                f"{format_bytes(free_disk_floor_bytes)} of them are to stay so"
            )
        member.uid, member.gid, member.uname, member.gname = os.getuid(), os.getgid(), "", ""
        member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
        tar.extract(member, folder, **trusted)  # type: ignore[arg-type]  # one keyword, or none


def _check_end(tar: tarfile.TarFile) -> None:
    """Raises TarError when the archive is damaged or cut short: tarfile takes a header that it cannot read for the end.

    Reading on to the end lets the decompressor compare its checksum, too.
    """
    assert tar.fileobj is not None
    end = tar.fileobj.tell() >= tar.offset + tarfile.BLOCKSIZE
    while rest := tar.fileobj.read(1 << 20):
        end = end and not any(rest)
    if not end:
        raise tarfile.ReadError("it is damaged, or was cut short")


def _is_inside(path: Path, folder: Path) -> bool:
    return Path(os.path.realpath(path)).is_relative_to(folder)
