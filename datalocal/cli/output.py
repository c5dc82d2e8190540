"""How commands print: JSON or text on stdout, everything else on stderr."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

WIDTH_WITHOUT_A_TERMINAL = 140
"""Columns of a table that goes into a file or a pipe: nothing is cut there."""


def print_json(value: Any) -> None:
    """`value` as the only thing on stdout."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


def note(text: str) -> None:
    """A line about progress, on stderr."""
    click.echo(text, err=True)


def stdout() -> Console:
    """Where results are printed."""
    return _console(stderr=False)


def stderr() -> Console:
    """Where progress is shown."""
    return _console(stderr=True)


def show(*parts: RenderableType) -> None:
    """Print tables and text on stdout."""
    console = stdout()
    for part in parts:
        console.print(part)


def _console(*, stderr: bool) -> Console:
    from rich.console import Console

    console = Console(stderr=stderr, highlight=False)
    if not console.is_terminal:
        console.width = WIDTH_WITHOUT_A_TERMINAL
    return console
