"""Looking a policy up by its name. Pure."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import TypeVar

from datalocal.errors import PlacementError

Named = TypeVar("Named")


def look_up(name: str, policies: Mapping[str, Named]) -> Named:
    """What is called `name` among `policies`. Raises PlacementError with the names that are near."""
    if name in policies:
        return policies[name]
    near = difflib.get_close_matches(name, policies, n=2, cutoff=0.5)
    raise PlacementError(
        f"there is no policy {name!r}",
        f"did you mean {' or '.join(near)}?" if near else f"policies: {', '.join(policies)}",
    )
