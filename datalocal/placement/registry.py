"""The policies by name."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from types import MappingProxyType
from typing import TypeVar

from datalocal.errors import PlacementError
from datalocal.placement import policies
from datalocal.placement.policies import Policy

Named = TypeVar("Named")

POLICIES: Mapping[str, Policy] = MappingProxyType(
    {
        "data-local": policies.data_local,
        "random": policies.random,
        "reduce-then-ship": policies.reduce_then_ship,
        "central-nas": policies.central_nas,
        "central-staged": policies.central_staged,
    }
)
"""One signature: (job, catalog, cluster of the nodes that are up) -> Plan."""


def policy_named(name: str) -> Policy:
    """The policy called `name`. Raises PlacementError with the names that are near."""
    return look_up(name, POLICIES)


def look_up(name: str, policies: Mapping[str, Named]) -> Named:
    """What is called `name` among `policies`. Raises PlacementError with the names that are near."""
    if name in policies:
        return policies[name]
    near = difflib.get_close_matches(name, policies, n=2, cutoff=0.5)
    raise PlacementError(
        f"there is no policy {name!r}",
        f"did you mean {' or '.join(near)}?" if near else f"policies: {', '.join(policies)}",
    )
