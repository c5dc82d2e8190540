"""Find what a person names: a job, a cluster config; a file of their own, or one that comes with datalocal."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Literal

import datalocal
from datalocal.errors import SpecError

Kind = Literal["jobs", "cluster-configs"]


def shipped(kind: Kind) -> Path:
    """The folder of the files that come with datalocal: inside an installed package, or beside it in a checkout."""
    package = Path(datalocal.__file__).parent
    installed = package / "shipped" / kind
    return installed if installed.is_dir() else package.parent / kind


def names(kind: Kind) -> list[str]:
    """What is shipped, by name."""
    return sorted(path.stem for path in shipped(kind).glob("*.yaml"))


def job_file(text: str) -> Path:
    """The job file that `text` names: a path, or the name of a shipped job. Raises SpecError."""
    return _find(text, "jobs", "job")


def cluster_file(text: str, home: Path) -> Path:
    """The cluster config that `text` names: a path, a shipped one, or a cluster below `home`. Raises SpecError."""
    known = home / ".clusters" / text / "cluster.json"  # JSON is YAML
    if not Path(text).is_file() and text not in names("cluster-configs") and not _is_path(text) and known.is_file():
        return known
    return _find(text, "cluster-configs", "cluster config")


def _find(text: str, kind: Kind, what: str) -> Path:
    path = Path(text)
    if path.is_file() or _is_path(text):
        return path  # whoever reads it says what is wrong with it, with the names that are near
    here = shipped(kind) / f"{text}.yaml"
    if here.is_file():
        return here
    near = difflib.get_close_matches(text, names(kind), n=1, cutoff=0.5)
    known = f"did you mean `{near[0]}`?" if near else f"shipped: {', '.join(names(kind))}"
    raise SpecError(text, "", f"there is no such file, and no shipped {what} of this name", known)


def _is_path(text: str) -> bool:
    return "/" in text or Path(text).suffix in {".yaml", ".yml", ".json"}
