"""The run directory: records appended, files written whole and renamed, completion marker last. Readable after a crash."""

from __future__ import annotations

import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias
from urllib.parse import quote

import psutil
import pyarrow as pa

from datalocal.errors import DatalocalError, RequestError
from datalocal.placement.model import Plan

State: TypeAlias = Literal["running", "completed", "failed", "cancelled"]

_ID = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
_LONGEST_NAME = 150
"""Of a file below a run: file systems take 255 bytes, and a temporary name needs room beside it."""


class RunDir:
    """One run's directory. One process (the run's) writes; anybody reads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.id = path.name
        self.log = path / "run.log"
        self._manifest: dict[str, Any] | None = None
        self._lock = threading.Lock()
        self._whole: set[str] = set()
        """Arms whose events are known to end with a whole line."""

    @classmethod
    def create(cls, home: Path, identity: str, manifest: Mapping[str, Any]) -> RunDir:
        """A new run. Raises DatalocalError when the id is taken or is no name for a folder."""
        if not _ID.match(identity):
            raise DatalocalError(f"{identity!r} is no run id", "use letters, digits, dots, dashes and underscores")
        home.mkdir(parents=True, exist_ok=True)
        run = cls(home / identity)
        try:
            run.path.mkdir()
        except FileExistsError:
            raise RequestError(
                f"there is a run {identity} already in {home}",
                f"choose another --run-id, or go on with it: datalocal submit --resume {identity}",
            ) from None
        run._write("run.json", json.dumps(manifest, indent=1).encode())
        return run

    @classmethod
    def open(cls, path: Path) -> RunDir:
        """An existing run. Raises DatalocalError when there is none."""
        run = cls(path.resolve())
        if not (run.path / "run.json").is_file():
            raise DatalocalError(f"{path} is no run directory", "`datalocal list` shows the runs")
        return run

    @property
    def manifest(self) -> dict[str, Any]:
        """What was asked for, which never changes, and `hosts` ({node: physical host}) once the nodes are known."""
        if self._manifest is None:
            self._manifest = json.loads((self.path / "run.json").read_bytes())
        hosts = self.path / "hosts.json"
        return self._manifest | {"hosts": json.loads(hosts.read_bytes()) if hosts.is_file() else {}}

    def write_hosts(self, hosts: Mapping[str, str]) -> None:
        """Note on which physical host each node is: nodes that share one share its cores, disk and power."""
        self._write("hosts.json", json.dumps(hosts, indent=1).encode())

    # State

    @property
    def state(self) -> dict[str, Any]:
        """{state, pid, error, exit_code, ...}; a run whose process is gone without a word is `failed`."""
        try:
            state: dict[str, Any] = json.loads((self.path / "state.json").read_bytes())
        except FileNotFoundError:
            return {"state": "failed", "error": "the run was prepared and never started", "pid": None, "exit_code": 1}
        if state["state"] == "running" and not _same_process(state["pid"], state["pid_started"]):
            return state | {
                "state": "failed",
                "error": f"the run's process {state['pid']} is gone\n  its log is {self.log}; "
                f"go on with: datalocal submit --resume {self.id}",
                "exit_code": 1,
            }
        return state

    def set_state(
        self, state: State, *, pid: int | None = None, error: str | None = None, exit_code: int | None = None
    ) -> None:
        """Write the state whole. A run that starts names its process."""
        content: dict[str, Any] = {"state": state, "error": error, "exit_code": exit_code, "changed": time.time()}
        pid = pid if pid is not None else os.getpid()
        content |= {"pid": pid, "pid_started": _started(pid)}
        self._write("state.json", json.dumps(content, indent=1).encode())

    def mark_completed(self) -> None:
        """The last thing that is written."""
        self._write("COMPLETED", b"")

    # Events

    def append(self, arm: str, event: Mapping[str, Any]) -> None:
        """One line, in one write: readers see it whole or not at all. Safe from several threads of the run's process.

        A line that a crash left torn is cut off before the first event of a resumed run. Raises DatalocalError when the line
        cannot be written (disk full).
        """
        line = json.dumps({"time": time.time(), **event}, separators=(",", ":")).encode() + b"\n"
        path = self._arm(arm) / "events.jsonl"
        with self._lock:
            try:
                if arm not in self._whole:
                    _cut_torn_line(path)
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
                try:
                    written = os.write(descriptor, line)
                finally:
                    os.close(descriptor)
            except OSError as error:
                self._whole.discard(arm)
                raise _unwritable(path, str(error.strerror)) from error
            if written < len(line):
                self._whole.discard(arm)
                raise _unwritable(path, "the disk is full")
            self._whole.add(arm)

    def events(self, arm: str) -> Iterator[dict[str, Any]]:
        """All events of an arm, in order.

        A last line that a crash left torn is not there yet; any other line that is no event means that the file was damaged
        by something else: DatalocalError with file and line number.
        """
        path = self.path / "arms" / arm / "events.jsonl"
        if not path.is_file():
            return
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.endswith(b"\n"):
                    return
                try:
                    event = json.loads(line)
                except ValueError:
                    event = None
                if not isinstance(event, dict) or "type" not in event:
                    raise DatalocalError(
                        f"{path}, line {number}: this is no event: {line[:60]!r}",
                        "the file was changed by something else than datalocal; restore it, or take the line out",
                    )
                yield event

    def all_events(self) -> dict[str, list[dict[str, Any]]]:
        """The events of every arm of the run, by policy."""
        return {policy: list(self.events(policy)) for policy in self.manifest["policies"]}

    def arm_state(self, arm: str) -> str | None:
        """How the arm ended; None while it has not."""
        ended = [event["state"] for event in self.events(arm) if event["type"] == "arm_finished"]
        return ended[-1] if ended else None

    # Files

    def log_path(self, arm: str, task: str) -> Path:
        """The log of one task."""
        folder = self._arm(arm) / "logs"
        folder.mkdir(exist_ok=True)
        return folder / f"{file_name(task)}.log"

    def write_plan(self, arm: str, plan: Plan) -> None:
        self._write(f"arms/{arm}/plan.json", json.dumps(plan.to_json()).encode())

    def read_plan(self, arm: str) -> Plan | None:
        """The arm's plan; None before there is one."""
        path = self.path / "arms" / arm / "plan.json"
        return Plan.from_json(json.loads(path.read_bytes())) if path.is_file() else None

    def write_estimate(self, arm: str, estimate: Mapping[str, Any]) -> None:
        """What the plan foretold, beside the plan."""
        self._write(f"arms/{arm}/estimate.json", json.dumps(estimate).encode())

    def estimates(self) -> dict[str, dict[str, Any]]:
        """By arm, what its plan foretold, where that was worked out."""
        files = {arm: self.path / "arms" / arm / "estimate.json" for arm in self.manifest["policies"]}
        return {arm: json.loads(file.read_bytes()) for arm, file in files.items() if file.is_file()}

    def code_path(self, digest: str) -> Path:
        return self.path / "code" / f"{digest}.tar.gz"

    def store_code(self, digest: str, content: bytes) -> None:
        self._write(f"code/{digest}.tar.gz", content)

    def store_checkpoint(self, arm: str, name: str, content: pa.Buffer) -> None:
        self._write(f"arms/{arm}/checkpoints/{file_name(name)}.ckpt", content)

    def read_checkpoint(self, arm: str, name: str) -> pa.Buffer:
        """The content of a checkpoint. Raises DatalocalError when it is not there."""
        path = self.path / "arms" / arm / "checkpoints" / f"{file_name(name)}.ckpt"
        if not path.is_file():
            raise DatalocalError(f"run {self.id} has no checkpoint {name} in arm {arm}")
        return pa.py_buffer(path.read_bytes())

    def write_report(self, report: Mapping[str, Any]) -> None:
        self._write("report.json", json.dumps(report, indent=1).encode())

    def read_report(self) -> dict[str, Any]:
        """The report as it was written at the end of the run."""
        report: dict[str, Any] = json.loads((self.path / "report.json").read_bytes())
        return report

    def write_page(self, page: str) -> None:
        self._write("report.html", page.encode())

    def _arm(self, arm: str) -> Path:
        folder = self.path / "arms" / arm
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _write(self, name: str, content: bytes | pa.Buffer) -> None:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise _unwritable(path, str(error.strerror)) from error
        _sync_folder(path.parent)


def all_runs(home: Path) -> list[RunDir]:
    """The runs below `home`, oldest first."""
    if not home.is_dir():
        return []
    runs = [RunDir(path) for path in home.iterdir() if (path / "run.json").is_file()]
    return sorted(runs, key=lambda run: (run.manifest["started"], run.id))


def file_name(name: str) -> str:
    """`name` (a task, a checkpoint, with slashes) as the name of one file: different names never share a file."""
    safe = quote(name, safe="=@+,")
    if safe.startswith("."):
        safe = "%2E" + safe[1:]
    if len(safe) > _LONGEST_NAME:
        safe = safe[: _LONGEST_NAME - 17] + "-" + hashlib.sha256(name.encode()).hexdigest()[:16]
    return safe


def _started(pid: int) -> float | None:
    try:
        return psutil.Process(pid).create_time()
    except psutil.Error:
        return None


def _same_process(pid: int, started: float | None) -> bool:
    try:
        process = psutil.Process(pid)
        alive = process.status() != psutil.STATUS_ZOMBIE
        return alive and (started is None or abs(process.create_time() - started) < 0.05)
    except psutil.Error:
        return False


def _cut_torn_line(path: Path) -> None:
    """Cut off what a crash left after the last whole line: only the run's own process writes, so nobody is writing it."""
    if not path.is_file():
        return
    with path.open("r+b") as file:
        end = size = file.seek(0, os.SEEK_END)
        while end:
            begin = max(0, end - 65536)
            file.seek(begin)
            newline = file.read(end - begin).rfind(b"\n")
            if newline >= 0:
                end = begin + newline + 1
                break
            end = begin
        if end < size:
            file.truncate(end)


def _sync_folder(folder: Path) -> None:
    """Make a rename last through a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # some file systems refuse it for folders; the rename is atomic all the same
        pass
    finally:
        os.close(descriptor)


def _unwritable(path: Path, cause: str) -> DatalocalError:
    return DatalocalError(f"cannot write {path}: {cause}", "make room there, then go on: datalocal submit --resume")
