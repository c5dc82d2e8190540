"""A file that says that a service is up, for whoever started it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path


@contextlib.contextmanager
def while_running(path: Path | None) -> Iterator[Callable[[], None]]:
    """Call what comes out when the service is ready: from then on `path` is there, until the context ends.

    One that an earlier process left when it was killed is removed at once.
    """
    if path is None:
        yield lambda: None
        return
    path.unlink(missing_ok=True)
    try:
        yield path.touch
    finally:
        path.unlink(missing_ok=True)
