"""dask's own TLS, from the cluster file's certificates, and a look at the scheduler that says why it would not let us in.

dask retries what TLS refuses until a timeout and then says that it timed out; so the handshake is made once by hand first.
"""

from __future__ import annotations

import socket
import ssl
from urllib.parse import urlsplit

from distributed.security import Security
from distributed.utils import get_ip

from datalocal.errors import ClusterError
from datalocal.spec.joining import Tls, is_loopback
from datalocal.storage.tls import MAKE_THEM, read_pem

_PROBE_SECONDS = 5.0


def security(tls: Tls | None) -> Security | None:
    """dask's security for a scheduler, worker or client that shows `tls`; None leaves it open (loopback only)."""
    if tls is None:
        return None
    roles = ("scheduler", "worker", "client")
    certificates = {f"tls_{role}_cert": tls.certificate for role in roles}
    keys = {f"tls_{role}_key": tls.key for role in roles}
    return Security(tls_ca_file=tls.ca, require_encryption=True, **certificates, **keys)


def own_address(scheduler: str) -> str:
    """Where the nodes reach this process: the scheduler's host by its name when that is this machine, else the address of
    this machine on the way there. Raises OSError when the scheduler's host has no address.
    """
    host = str(urlsplit(scheduler).hostname)
    if is_loopback(host):
        return "127.0.0.1"
    own = str(get_ip(host))
    return host if own == socket.gethostbyname(host) else own


def check_scheduler(scheduler: str, tls: Tls | None) -> None:
    """Shake hands with the scheduler as dask would, and say in words why that fails: raises ClusterError.

    A scheduler that does not answer is no failure here: it may be on its way up.
    """
    if tls is None:
        return
    for path in (tls.ca, tls.certificate, tls.key):
        read_pem(path)
    where = urlsplit(scheduler)
    try:
        with (
            socket.create_connection((where.hostname, where.port), timeout=_PROBE_SECONDS) as plain,
            _context(tls).wrap_socket(plain) as wrapped,
        ):
            wrapped.recv(1)  # with TLS 1.3 the other side's refusal comes after the handshake
    except ssl.SSLCertVerificationError as error:
        raise ClusterError(
            f"the scheduler at {scheduler} shows a certificate that {tls.ca} does not vouch for: {error.verify_message}",
            "is this the head of another cluster, or are the certificates of another one on this host? " + MAKE_THEM,
        ) from None
    except ssl.SSLError as error:
        if error.reason in {"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"}:
            raise ClusterError(
                f"what listens at {scheduler} does not speak TLS", "is another program on that port?"
            ) from None
        raise ClusterError(
            f"the scheduler at {scheduler} refused the certificate {tls.certificate}: {error.reason or error}",
            "it wants one that its own authority signed and that is valid today. " + MAKE_THEM,
        ) from None
    except OSError:
        return


def _context(tls: Tls) -> ssl.SSLContext:
    """As dask makes it: both sides show a certificate, host names are not compared."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(tls.ca)
        context.load_cert_chain(tls.certificate, tls.key)
    except ssl.SSLError as error:
        raise ClusterError(
            f"{tls.certificate} and its key {tls.key} cannot be used: {error.reason or error}", MAKE_THEM
        ) from None
    return context
