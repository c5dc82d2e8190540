"""Certificates as Arrow Flight wants them: both sides show one, both check the other's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datalocal.errors import ClusterError
from datalocal.spec.joining import Tls

MAKE_THEM = "`datalocal cluster certificates` makes the files of a whole cluster; copy each host's own to it"


def scheme(tls: Tls | None) -> str:
    """The beginning of a location."""
    return "grpc+tls" if tls else "grpc"


def server_arguments(tls: Tls | None) -> dict[str, Any]:
    """Keyword arguments of a Flight server. Raises ClusterError naming a file that cannot be read."""
    if tls is None:
        return {}
    return {
        "tls_certificates": [(read_pem(tls.certificate), read_pem(tls.key))],
        "verify_client": True,
        "root_certificates": read_pem(tls.ca),
    }


def client_arguments(tls: Tls | None) -> dict[str, Any]:
    """Keyword arguments of a Flight client. Raises ClusterError naming a file that cannot be read."""
    if tls is None:
        return {}
    return {
        "tls_root_certs": read_pem(tls.ca),
        "cert_chain": read_pem(tls.certificate),
        "private_key": read_pem(tls.key),
    }


def read_pem(path: str) -> bytes:
    """The content of a PEM file. Raises ClusterError, never with any of the content."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ClusterError(f"{path} cannot be read: {error.strerror or error}", MAKE_THEM) from None
    if b"-----BEGIN " not in content:
        raise ClusterError(f"{path} is not a PEM file", MAKE_THEM)
    return content
