"""A service in the foreground: its log on standard error, and a file that says that it is up, for whoever started it."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import click

Told: TypeAlias = Mapping[str, Any]


@contextlib.contextmanager
def serving(path: Path | None, in_words: Callable[[Told], str]) -> Iterator[Callable[[Told], None]]:
    """Call what comes out with what the service tells of itself when it is ready.

    It is said on standard error, `in_words`, and from then on `path` is there, until the context ends. One that an earlier
    process left when it was killed is removed at once.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    if path is not None:
        path.unlink(missing_ok=True)

    def ready(told: Told) -> None:
        click.echo(in_words(told), err=True)
        if path is not None:
            path.touch()

    try:
        yield ready
    finally:
        if path is not None:
            path.unlink(missing_ok=True)
