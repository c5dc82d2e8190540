"""Where HDFS is: from the cluster config, else from Hadoop's own configuration files."""

from __future__ import annotations

import os
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from datalocal.errors import StorageError
from datalocal.spec.cluster import Storage

_HTTP_PORT = "9870"
_RPC_PORT = 8020


@dataclass(frozen=True, slots=True, kw_only=True)
class Where:
    """`url` for data (hdfs://...), `webhdfs` for metadata (http://host:port, one per NameNode), and Hadoop's properties."""

    url: str
    webhdfs: tuple[str, ...]
    properties: Mapping[str, str]


def find_hdfs(storage: Storage) -> Where:
    """Raises StorageError when neither the cluster config nor the configuration folder tells."""
    folder = storage.conf_dir or os.environ.get("HADOOP_CONF_DIR") or ""
    properties = _read(Path(folder)) if folder else {}
    url = storage.namenode or properties.get("fs.defaultFS", "")
    if not url.startswith("hdfs://"):
        raise StorageError(
            f"no NameNode is known: `storage.namenode` is not given, and fs.defaultFS in {folder or 'no conf_dir'} is {url!r}",
            "give `storage.namenode: hdfs://host:port` in the cluster config, or set HADOOP_CONF_DIR",
        )
    return Where(url=url, webhdfs=storage.webhdfs or _http_addresses(url, properties), properties=properties)


def rpc_ports(where: Where) -> frozenset[int]:
    """The ports at which the NameNodes answer the data client."""
    host = where.url.removeprefix("hdfs://").partition("/")[0]
    members = [name.strip() for name in where.properties.get(f"dfs.ha.namenodes.{host}", "").split(",") if name.strip()]
    named = [where.properties.get(f"dfs.namenode.rpc-address.{host}.{member}", "") for member in members]
    ports = [address.rpartition(":")[2] for address in (named or [host]) if ":" in address]
    return frozenset(int(port) for port in ports if port.isdecimal()) or frozenset({_RPC_PORT})


def _http_addresses(url: str, properties: Mapping[str, str]) -> tuple[str, ...]:
    """WebHDFS of every NameNode: a name service has several, of which one is active."""
    host = url.removeprefix("hdfs://").partition("/")[0]
    scheme = "https" if properties.get("dfs.http.policy") == "HTTPS_ONLY" else "http"
    key = f"dfs.namenode.{scheme}-address"
    members = [name.strip() for name in properties.get(f"dfs.ha.namenodes.{host}", "").split(",") if name.strip()]
    if members:
        found = [properties.get(f"{key}.{host}.{member}", "") for member in members]
        if all(found):
            return tuple(f"{scheme}://{address}" for address in found)
        raise StorageError(
            f"the name service {host} has the NameNodes {', '.join(members)}, and not all have a {key}.{host}.NAME",
            "give `storage.webhdfs` in the cluster config",
        )
    address = properties.get(key, "")
    name, _, port = address.rpartition(":")
    if not name or name == "0.0.0.0":  # noqa: S104  # Hadoop's default, compared and not bound
        name = host.partition(":")[0]
    return (f"{scheme}://{name}:{port or _HTTP_PORT}",)


def _read(folder: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in ("core-site.xml", "hdfs-site.xml"):
        path = folder / name
        if not path.is_file():
            continue
        try:
            root = ET.parse(path).getroot()  # noqa: S314  # the administrator's own file
        except ET.ParseError as error:
            raise StorageError(f"{path} is not XML: {error}") from None
        for row in root.iter("property"):
            key, value = row.findtext("name"), row.findtext("value")
            if key and value is not None:
                found[key.strip()] = value.strip()
    return found
