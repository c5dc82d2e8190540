"""One bean of a Hadoop daemon's JMX, over HTTP."""

from __future__ import annotations

import json
import urllib.request
from typing import Any


def jmx(url: str, bean: str, *, timeout_seconds: float = 2.0, authorization: str = "") -> dict[str, Any] | None:
    """A JMX bean of the daemon that serves HTTP at `url`; None while it has none of that name. Raises OSError when none answers.

    `authorization` is the header of that name, for a daemon that wants to know who asks.
    """
    headers = {"Authorization": authorization} if authorization else {}
    request = urllib.request.Request(f"{url}/jmx?qry=Hadoop:{bean}", headers=headers)  # noqa: S310  # a daemon's http(s)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(request, timeout=timeout_seconds) as answer:
        beans: list[dict[str, Any]] = json.load(answer)["beans"]
    return beans[0] if beans else None
