"""Where things are, and which run is meant."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datalocal.errors import RequestError, SpecError

if TYPE_CHECKING:
    from datalocal.ledger.run_dir import RunDir

_PACKAGE = Path(__file__).resolve().parent.parent


def shipped(kind: str) -> Path:
    """The folder of shipped `jobs` or `cluster-configs`: in the installed package, or beside it in a checkout."""
    installed = _PACKAGE / "shipped" / kind
    return installed if installed.is_dir() else _PACKAGE.parent / kind


def job_path(name: str) -> Path:
    """A job file, or the name of a shipped job."""
    path = Path(name)
    if path.exists() or path.suffix in {".yaml", ".yml"} or "/" in name:
        return path
    candidate = shipped("jobs") / f"{name}.yaml"
    if not candidate.is_file():
        known = sorted(file.stem for file in shipped("jobs").glob("*.yaml"))
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
        hint = f"did you mean {near[0]}?" if near else f"shipped jobs: {', '.join(known)}"
        raise SpecError(name, "", "there is no such job file, nor a shipped job of that name", hint)
    return candidate


def cluster_path(path: str | None) -> Path:
    """The cluster config that is meant; the embedded one by default."""
    return Path(path) if path else shipped("cluster-configs") / "embedded.yaml"


def home() -> Path:
    """Where runs and clusters live."""
    from datalocal.launch.embedded import home as where

    return where()


def find_run(name: str) -> RunDir:
    """A run by id, unique beginning of its id, path, or `last`. Raises RequestError with the near ones."""
    from datalocal.ledger.run_dir import RunDir, all_runs

    if "/" in name or (Path(name) / "run.json").is_file():
        return RunDir.open(Path(name))
    runs = all_runs(home())
    if name == "last":
        if not runs:
            raise RequestError(f"there is no run in {home()}", "start one: datalocal submit JOB")
        return runs[-1]
    exact = [run for run in runs if run.id == name]
    found = exact or [run for run in runs if run.id.startswith(name)]
    if len(found) == 1:
        return found[0]
    if found:
        raise RequestError(
            f"{name!r} is the beginning of {len(found)} runs", "say which: " + ", ".join(run.id for run in found)
        )
    known = ", ".join(run.id for run in runs[-5:]) or "none"
    raise RequestError(f"there is no run {name!r} in {home()}", f"latest runs: {known}")


def load_report(run: RunDir) -> dict[str, Any]:
    """The run's report; rebuilt from the records when the run has not written one (yet), or was changed since."""
    from datalocal.report.build import build

    if run.state["state"] == "completed" and (run.path / "report.json").is_file():
        return run.read_report()
    return build(run.manifest, run.all_events(), state=run.state["state"], estimates=run.estimates())
