"""One bean of a Hadoop daemon's JMX, over HTTP."""

from __future__ import annotations

import json
import urllib.request
from typing import Any


def jmx(
    host: str, port: int, bean: str, *, timeout_seconds: float = 2.0, authorization: str = ""
) -> dict[str, Any] | None:
    """The JMX bean of a daemon; None while the daemon has none of that name. Raises OSError when nobody answers.

    `authorization` is the header of that name, for a daemon that wants to know who asks.
    """
    headers = {"Authorization": authorization} if authorization else {}
    url = urllib.request.Request(f"http://{host}:{port}/jmx?qry=Hadoop:{bean}", headers=headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=timeout_seconds) as answer:
        beans: list[dict[str, Any]] = json.load(answer)["beans"]
    return beans[0] if beans else None
