"""When a checkpoint is complete: its content and the samples lines of all ranks are in. Until then it does not count."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from datalocal.ledger.lineage import CheckpointName


class CheckpointBook:
    """Puts the parts together as they arrive, in any order and from any thread."""

    def __init__(self, world: Callable[[str, int], int]) -> None:
        """`world(arm, launch)` is the number of ranks of that launch."""
        self._world = world
        self._lock = threading.Lock()
        self._blobs: dict[tuple[str, str], tuple[int, str]] = {}
        self._lines: dict[tuple[str, str], dict[int, str]] = {}

    def blob(self, arm: str, name: str, size_bytes: int, sha256: str) -> dict[str, Any] | None:
        """The content is stored and has this hash. The `checkpoint` event when this makes it complete."""
        with self._lock:
            self._blobs[(arm, name)] = size_bytes, sha256
            return self._whole(arm, name)

    def line(self, arm: str, line: Mapping[str, Any]) -> dict[str, Any] | None:
        """A rank's samples line is stored. The `checkpoint` event when this makes it complete."""
        name = line["checkpoint"]
        with self._lock:
            self._lines.setdefault((arm, name), {})[line["rank"]] = line["stage"]
            return self._whole(arm, name)

    def _whole(self, arm: str, name: str) -> dict[str, Any] | None:
        at = CheckpointName.parse(name)
        lines = self._lines.get((arm, name), {})
        if (arm, name) not in self._blobs or not lines or len(lines) < self._world(arm, at.launch):
            return None
        size_bytes, sha256 = self._blobs.pop((arm, name))
        stage = next(iter(self._lines.pop((arm, name)).values()))
        return {
            "stage": stage,
            "launch": at.launch,
            "name": name,
            "epoch": at.epoch,
            "step": at.step,
            "bytes": size_bytes,
            "sha256": sha256,
        }


def world_of(events: Iterable[Mapping[str, Any]], launch: int) -> int:
    """Ranks of a launch, from its event."""
    for event in events:
        if event["type"] == "launch" and event["launch"] == launch:
            world: int = event["world"]
            return world
    raise KeyError(launch)
