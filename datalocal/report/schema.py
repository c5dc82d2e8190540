"""The contracts of `report --json`, and of `plan --json` and `simulate --json`: JSON Schemas (2020-12) in the package."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from typing import Any

from datalocal.errors import DatalocalError

REPORT, PLAN = "schema.json", "plan_schema.json"


def schema(contract: str = REPORT) -> dict[str, Any]:
    """The schema as JSON values; `contract` is REPORT or PLAN."""
    text = resources.files("datalocal.report").joinpath(contract).read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found


def validate(content: Mapping[str, Any], contract: str = REPORT) -> None:
    """Check a report or a plan. Raises ValueError naming the path, DatalocalError when `jsonschema` is not installed."""
    try:
        import jsonschema
    except ImportError:
        raise DatalocalError(
            "checking a report against its schema needs `jsonschema`", "install it: pip install 'datalocal[test]'"
        ) from None
    problem = jsonschema.exceptions.best_match(jsonschema.Draft202012Validator(schema(contract)).iter_errors(content))
    if problem is not None:
        raise ValueError(f"{problem.json_path}: {problem.message}")
