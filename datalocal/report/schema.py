"""The contract of `datalocal report RUN --json`: a JSON Schema (2020-12) that ships with the package."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from typing import Any

from datalocal.errors import DatalocalError


def schema() -> dict[str, Any]:
    """The schema as JSON values."""
    text = resources.files("datalocal.report").joinpath("schema.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def validate(report: Mapping[str, Any]) -> None:
    """Check a report. Raises ValueError naming the path, DatalocalError when `jsonschema` is not installed."""
    try:
        import jsonschema
    except ImportError:
        raise DatalocalError(
            "checking a report against its schema needs `jsonschema`", "install it: pip install 'datalocal[test]'"
        ) from None
    problem = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(schema()).iter_errors(report))
    if problem is not None:
        raise ValueError(f"{problem.json_path}: {problem.message}")
