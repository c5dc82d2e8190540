"""A DataNode's clienttrace: what it sent to whom and took in from whom, in words that datalocal does not write."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

_LINE = re.compile(
    rb"src: /(?P<src>[0-9a-fA-F.:]+):\d+, dest: /(?P<dest>[0-9a-fA-F.:]+):\d+,.*? bytes: (?P<bytes>\d+), "
    rb"op: HDFS_(?P<op>READ|WRITE), cliID: (?P<client>[^,]*),"
)

Totals = dict[str, dict[str, list[int]]]
"""{`read`: {reader's address: [bytes, operations]}, `write`: {address of the hop before: [bytes, operations]}}."""


def add_lines(totals: Totals, lines: Iterable[bytes]) -> None:
    """Add what the lines tell; lines of other kinds are no trouble.

    A read's bytes are widened to checksum chunks (`storage.hdfs.wire.traced_bytes`), a write's are payload.
    """
    for line in lines:
        found = _LINE.search(line)
        if found is None:
            continue
        read = found["op"] == b"READ"
        other = found["dest" if read else "src"].decode()
        sums = totals.setdefault("read" if read else "write", {}).setdefault(other, [0, 0])
        sums[0] += int(found["bytes"])
        sums[1] += 1


class TraceFile:
    """Totals of a growing trace file since it was first looked at. Follows it when it is rotated away."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._inode = 0
        self.totals: Totals = {"read": {}, "write": {}}

    def read(self) -> Totals:
        """The totals up to now, counting whole lines. Raises OSError when the file cannot be read."""
        with self._path.open("rb") as file:
            status = os.fstat(file.fileno())
            if status.st_ino != self._inode or status.st_size < self._offset:
                self._inode, self._offset = status.st_ino, 0
            file.seek(self._offset)
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._offset += len(whole)
        add_lines(self.totals, whole.splitlines())
        return self.totals
