"""Strict YAML: an unknown key, a wrong type or an impossible combination is refused with file, key and a suggestion."""

from __future__ import annotations

import difflib
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from datalocal.errors import SpecError


class Strict(BaseModel):
    """Base of everything a person writes: frozen, no unknown keys, no silent conversions of type."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, validate_default=True)


Model = TypeVar("Model", bound=Strict)


class _UniqueKeyLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice: YAML would silently keep the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises SpecError when it is missing, not YAML, or not a mapping."""
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.y*ml")], n=1, cutoff=0.5)
        raise SpecError(
            str(path), "", "there is no such file", f"did you mean {path.parent / near[0]}?" if near else ""
        )
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)  # noqa: S506  # a SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}" if mark else ""
        raise SpecError(str(path), where, f"not valid YAML: {getattr(error, 'problem', error)}") from None
    except UnicodeDecodeError as error:
        raise SpecError(str(path), "", f"not a UTF-8 text file: {error.reason}") from None
    if not isinstance(content, dict):
        raise SpecError(str(path), "", "expected `key: value` lines at the top level")
    return content


def parse(model: type[Model], content: dict[str, Any], file: str) -> Model:
    """`content` as a `model`. Raises SpecError naming the first offending key, with a suggestion where one is near."""
    try:
        return model.model_validate(content)
    except ValidationError as invalid:
        raise spec_error(model, invalid, file) from None


def spec_error(model: type[Strict], invalid: ValidationError, file: str) -> SpecError:
    """The first problem of a pydantic error as a SpecError; unknown keys come first, they often cause the others."""
    problems = sorted(invalid.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    problem = problems[0]
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        known = known_keys(model, problem["loc"][:-1])
        near = difflib.get_close_matches(str(problem["loc"][-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean `{near[0]}`?" if near else f"known keys here: {', '.join(known)}"
        return SpecError(file, key, "unknown key", hint)
    if problem["type"] == "missing":
        return SpecError(file, key, "this key is required")
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] != "value_error" and not isinstance(problem["input"], dict | list):
        message += f" (got {problem['input']!r})"
    return SpecError(file, key, message)


def known_keys(model: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
    """The keys a person may write at `loc` inside `model`."""
    models = [model]
    for part in loc:
        if isinstance(part, int):
            continue
        found = [m.model_fields[part].annotation for m in models if part in m.model_fields]
        if found:
            models = [nested for annotation in found for nested in _models_in(annotation)]
        else:  # a union member's name, which pydantic puts into the location
            models = [m for m in models if m.__name__ == part] or models
    return sorted({field.alias or name for m in models for name, field in m.model_fields.items()})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [model for argument in typing.get_args(annotation) for model in _models_in(argument)]
