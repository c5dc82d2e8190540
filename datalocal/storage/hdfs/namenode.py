"""The NameNode by WebHDFS: listings, block locations, renames and deletes. No data go through here."""

from __future__ import annotations

import getpass
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

from datalocal.errors import StorageError
from datalocal.spec.cluster import Storage
from datalocal.storage.hdfs import webhdfs
from datalocal.storage.hdfs.webhdfs import Block, FileStatus
from datalocal.storage.hdfs.where import find_hdfs

_PASSING = ("StandbyException", "SafeModeException", "RetriableException")
"""What a NameNode says that is not ready, or not the active one."""
_PAUSE_SECONDS = 0.25
_REPLICAS_SECONDS = 0.3
"""How long to wait for replicas that DataNodes have and have not reported yet."""
_WRITTEN_SECONDS = 5.0
"""The same just after a write: whoever wrote counts a hop for each replica, and a file is complete with one of them reported."""


Count: TypeAlias = Callable[[int, int], None]


class MissingError(StorageError):
    """There is no such file or folder."""


class NameNode:
    """Thread-safe; keeps no connection. Paths are absolute.

    A NameNode that is away, in safe mode or standby is asked again for `namenode_timeout_seconds`; then StorageError.
    `count` is told the bytes of each question and of its answer.
    """

    def __init__(self, storage: Storage, count: Count | None = None) -> None:
        self._storage, self._count = storage, count
        self._urls = list(find_hdfs(storage).webhdfs)
        self._all_report = True
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    @property
    def urls(self) -> Sequence[str]:
        """HTTP addresses of all NameNodes, the one that answered last first."""
        return tuple(self._urls)

    def status(self, path: str) -> FileStatus:
        """The file or folder at `path`. Raises MissingError."""
        return webhdfs.status(self._ask("GET", path, op="GETFILESTATUS"))

    def listing(self, folder: str) -> Iterator[FileStatus]:
        """What lies in `folder`, page by page. Raises MissingError."""
        after: str | None = ""
        while after is not None:
            # Parameter names are case-sensitive whatever the documentation says: `startAfter` is ignored, page 1 for ever.
            options = {"startafter": after} if after else {}
            rows, after = webhdfs.listing_page(self._ask("GET", folder, op="LISTSTATUS_BATCH", **options))
            yield from rows

    def files(self, folder: str) -> list[FileStatus]:
        """Every file in and below `folder` that may be a shard, by its path below it, sorted; hidden ones are left out."""
        found: list[FileStatus] = []
        todo = [""]
        while todo:
            inside = todo.pop()
            for row in self.listing(f"{folder}/{inside}".rstrip("/")):
                path = f"{inside}/{row.path}" if inside else row.path
                if row.is_folder and not row.path.startswith((".", "_")):
                    todo.append(path)
                elif not row.is_folder and webhdfs.is_shard_name(row.path):
                    found.append(replace(row, path=path))
        return sorted(found, key=lambda file: file.path)

    def blocks(self, file: FileStatus, path: str) -> list[Block]:
        """The blocks of a file with the replicas that count; asked again while fewer are listed than the file shall have."""
        return self._whole_blocks(file, path, _REPLICAS_SECONDS)[0]

    def written_blocks(self, file: FileStatus, path: str) -> list[Block]:
        """As `blocks`, of a file that was written just now: replicas that are there may be reported seconds later.

        Where fewer DataNodes are alive than a file shall have replicas, only the first file waits so long in vain.
        """
        patience_seconds = _WRITTEN_SECONDS if self._all_report else _REPLICAS_SECONDS
        found, self._all_report = self._whole_blocks(file, path, patience_seconds)
        return found

    def _whole_blocks(self, file: FileStatus, path: str, patience_seconds: float) -> tuple[list[Block], bool]:
        """The blocks, and whether each has all its replicas."""
        deadline = time.monotonic() + patience_seconds
        while True:
            found = self._blocks(path)
            whole = file.erasure_coded or all(len(block.locations) >= file.replication for block in found)
            if whole or time.monotonic() > deadline:
                return found, whole
            time.sleep(0.05)

    def _blocks(self, path: str) -> list[Block]:
        try:
            return webhdfs.located_blocks(self._ask("GET", path, op="GET_BLOCK_LOCATIONS"))
        except MissingError:
            raise
        except (StorageError, KeyError):  # undocumented, and HttpFS does not know it
            return webhdfs.file_blocks(self._ask("GET", path, op="GETFILEBLOCKLOCATIONS"))

    def make_folder(self, path: str) -> None:
        """Make `path` with all folders above it; one that is there is no error."""
        self._ask("PUT", path, op="MKDIRS")

    def rename(self, path: str, to: str) -> None:
        """Move a file; one that is at `to` is replaced in the same moment. The folder must be there."""
        self._ask("PUT", path, op="RENAME", destination=to, renameoptions="OVERWRITE")

    def set_replication(self, path: str, replication: int) -> None:
        """Ask for so many replicas of a file; the DataNodes make them in their own time."""
        self._ask("PUT", path, op="SETREPLICATION", replication=str(replication))

    def delete(self, path: str) -> None:
        """Remove a file or a folder with all in it; what is not there is no error."""
        self._ask("DELETE", path, op="DELETE", recursive="true")

    def _ask(self, method: str, path: str, **parameters: str) -> Any:
        if self._storage.authentication == "simple":
            parameters["user.name"] = self._storage.user or getpass.getuser()
        deadline = time.monotonic() + self._storage.namenode_timeout_seconds
        while True:
            problems = []
            for url in self._urls:
                try:
                    answer = self._once(method, url, path, parameters)
                except _NotNowError as problem:
                    problems.append(f"{url}: {problem}")
                else:
                    self._urls = [url, *(other for other in self._urls if other != url)]  # the active one first
                    return answer
            if time.monotonic() + _PAUSE_SECONDS > deadline:
                raise StorageError(
                    f"HDFS does not answer within {self._storage.namenode_timeout_seconds:g} s: {'; '.join(problems)}",
                    "is the NameNode up and out of safe mode? `hdfs dfsadmin -safemode get`, and the NameNode's log",
                )
            time.sleep(_PAUSE_SECONDS)

    def _once(self, method: str, url: str, path: str, parameters: dict[str, str]) -> Any:
        query = urllib.parse.urlencode(parameters)
        request = urllib.request.Request(  # noqa: S310  # http(s) from the cluster config
            f"{url}/webhdfs/v1{urllib.parse.quote(path)}?{query}", method=method
        )
        if self._storage.authentication == "kerberos":
            request.add_header("Authorization", negotiate(urllib.parse.urlsplit(url).hostname or ""))
        try:
            with self._opener.open(request, timeout=self._storage.namenode_timeout_seconds) as answer:
                content = answer.read()
                if self._count is not None:
                    self._count(len(request.full_url), _head_bytes(answer) + len(content))
                return json.loads(content) if content else {}  # a rename with options answers nothing
        except urllib.error.HTTPError as refused:
            raise _refusal(path, refused) from None
        except (OSError, ValueError) as error:  # refused, reset, timed out, or no JSON: something else listens there
            raise _NotNowError(str(getattr(error, "reason", None) or error)) from None


def _head_bytes(answer: Any) -> int:
    """Of an HTTP answer: its status line and headers, as they were sent."""
    lines = [f"HTTP/1.1 {answer.status} {answer.reason}", *(f"{key}: {value}" for key, value in answer.headers.items())]
    return sum(len(line) + 2 for line in lines) + 2


class _NotNowError(Exception):
    """This NameNode does not serve now; another one, or a later moment, may."""


def _refusal(path: str, refused: urllib.error.HTTPError) -> Exception:
    try:
        name, message = webhdfs.exception(json.load(refused))
    except (OSError, ValueError):
        name, message = "", ""
    if name in _PASSING or refused.code in (502, 503, 504):
        return _NotNowError(f"{name or refused.code}: {message}")
    if name == "FileNotFoundException":
        return MissingError(f"HDFS: {path}: there is no such file or folder")
    if refused.code == 401:
        return StorageError(
            f"HDFS: {path}: the NameNode wants to know who asks (401)",
            "set `storage.authentication: kerberos` and get a ticket with kinit",
        )
    told = f"{name}: {message}" if name else f"HTTP status {refused.code}"
    return StorageError(f"HDFS: {path}: {told}", "see the NameNode's log")


def negotiate(host: str) -> str:
    """The SPNEGO header for the service HTTP on `host`, from the caller's Kerberos ticket. Raises StorageError."""
    import base64

    try:
        import gssapi
    except ImportError:
        raise StorageError("Kerberos needs the package `gssapi`", "install it: pip install gssapi") from None
    try:
        name = gssapi.Name(f"HTTP@{host}", name_type=gssapi.NameType.hostbased_service)
        token = gssapi.SecurityContext(name=name, usage="initiate").step()
    except gssapi.exceptions.GSSError as error:
        raise StorageError(f"no Kerberos ticket for HTTP@{host}: {error}", "get one with kinit") from None
    return f"Negotiate {base64.b64encode(token or b'').decode()}"
