"""WebHDFS answers as values. Pure: JSON in, values out; recorded answers of a real NameNode are the tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_NORMAL = "NORMAL"
_PARQUET_SUFFIXES = (".parquet", ".parq", ".pq")


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """One replica of a block: the DataNode that has it."""

    host: str
    ip: str
    rack: str
    """Network location, e.g. `/dc1/rack1`."""

    @property
    def names(self) -> tuple[str, ...]:
        """How this DataNode may be called in a cluster config: address, host name, its short form. Lower case."""
        return tuple(dict.fromkeys(name.lower() for name in (self.ip, self.host, self.host.partition(".")[0]) if name))


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """`bytes` of a file from `offset` on, and the replicas that count."""

    offset: int
    bytes: int
    locations: tuple[Location, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FileStatus:
    """One file or folder. `path` is relative to what was asked about; empty for that itself."""

    path: str
    is_folder: bool
    bytes: int
    block_bytes: int
    replication: int
    identity: tuple[int, int]
    """File number and time of the last change: the same pair is the same content."""
    erasure_coded: bool
    owner: str = ""


def located_blocks(answer: Mapping[str, Any]) -> list[Block]:
    """Blocks of a `GET_BLOCK_LOCATIONS` answer, in file order. Replicas on DataNodes that are not NORMAL are left out."""
    return [
        Block(
            offset=int(block["startOffset"]),
            bytes=int(block["block"]["numBytes"]),
            locations=()
            if block.get("isCorrupt")
            else tuple(
                Location(host=str(at["hostName"]), ip=str(at["ipAddr"]), rack=str(at["networkLocation"]))
                for at in block["locations"]
                if at.get("adminState", _NORMAL) == _NORMAL
            ),
        )
        for block in answer["LocatedBlocks"]["locatedBlocks"]
    ]


def file_blocks(answer: Mapping[str, Any]) -> list[Block]:
    """Blocks of a `GETFILEBLOCKLOCATIONS` answer, which knows no admin states: every replica counts."""
    blocks = answer["BlockLocations"]["BlockLocation"]
    return [
        Block(
            offset=int(block["offset"]),
            bytes=int(block["length"]),
            locations=() if block.get("corrupt") else tuple(_locations(block)),
        )
        for block in ([blocks] if isinstance(blocks, dict) else blocks)
    ]


def _locations(block: Mapping[str, Any]) -> Sequence[Location]:
    hosts, names = block["hosts"], block["names"]
    paths = block.get("topologyPaths") or [""] * len(hosts)
    return [
        Location(host=str(host), ip=str(name).rpartition(":")[0], rack=str(path).rpartition("/")[0])
        for host, name, path in zip(hosts, names, paths, strict=True)
    ]


def status(answer: Mapping[str, Any]) -> FileStatus:
    """A `GETFILESTATUS` answer."""
    return _status(answer["FileStatus"])


def listing_page(answer: Mapping[str, Any]) -> tuple[list[FileStatus], str | None]:
    """A page of `LISTSTATUS_BATCH`, and the name after which the next one begins; None after the last page."""
    listing = answer["DirectoryListing"]
    rows = listing["partialListing"]["FileStatuses"]["FileStatus"]
    found = [_status(row) for row in rows]
    more = int(listing.get("remainingEntries", 0)) > 0 and bool(found)
    return found, found[-1].path if more else None


def _status(row: Mapping[str, Any]) -> FileStatus:
    return FileStatus(
        path=str(row.get("pathSuffix", "")),
        is_folder=row["type"] == "DIRECTORY",
        bytes=int(row["length"]),
        block_bytes=int(row["blockSize"]),
        replication=int(row["replication"]),
        identity=(int(row.get("fileId", 0)), int(row["modificationTime"])),
        erasure_coded=bool(row.get("ecBit") or row.get("ecPolicy")),
        owner=str(row.get("owner", "")),
    )


def exception(answer: Any) -> tuple[str, str]:
    """Name and first line of a WebHDFS error; empty where the answer is none."""
    try:
        told = answer["RemoteException"]
        return str(told["exception"]), str(told["message"]).partition("\n")[0]
    except (KeyError, TypeError):
        return "", ""


def is_shard_name(name: str) -> bool:
    """Whether a file of this name may be a shard: Parquet by suffix, or without one; not `_SUCCESS`, `.x.crc`, `_metadata`."""
    if name.startswith((".", "_")) or name.endswith((".crc", "_COPYING_")):
        return False
    return name.endswith(_PARQUET_SUFFIXES) or "." not in name
