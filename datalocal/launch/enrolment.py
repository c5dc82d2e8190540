"""The first start of a cluster whose hosts share no disk and no person: the head hands every node its files, once.

Whoever asks first for a node's files gets them. So this is for a network on which only the cluster's own hosts are (that of
`docker compose`), for the seconds of its first start; elsewhere the files are copied by hand. The head shows its own
certificate and cannot know the node; the node takes the authority as it comes, and knows it from then on.
"""

from __future__ import annotations

import http.client
import json
import logging
import ssl
import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import BaseServer, ThreadingTCPServer
from typing import Any

from datalocal.errors import ClusterError
from datalocal.launch.certificates import make, write_file
from datalocal.launch.existing import own_tls
from datalocal.spec.cluster import Cluster

log = logging.getLogger("datalocal.head")

_DAYS = 3650
_RETRY_SECONDS = 1.0


class _Server(ThreadingTCPServer):
    """Not http.server's: that looks the host's full name up, which takes seconds where no name service answers."""

    allow_reuse_address = True
    daemon_threads = True


def hand_out(cluster: Cluster, port: int) -> BaseServer | None:
    """Make what is missing of the cluster's certificates and token, and serve the nodes' files until each was handed out.

    None when all were. Raises ClusterError: the port is in use.
    """
    make(cluster, folder=None, days=_DAYS)
    waiting = {node.name for node in cluster.nodes if not _given(cluster, node.name).exists()}
    if not waiting:
        return None
    own = own_tls(cluster, "head")
    assert own is not None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own.certificate, own.key)
    try:
        server = _Server((cluster.address("head"), port), _handler(cluster, waiting))
    except OSError as error:
        raise ClusterError(f"enrolment cannot listen on port {port}: {error.strerror or error}") from None
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    threading.Thread(target=server.serve_forever, name="datalocal-enrolment", daemon=True).start()
    log.info("enrolment: waiting for %s on port %d", ", ".join(sorted(waiting)), port)
    return server


def fetch(cluster: Cluster, name: str, port: int, *, wait_seconds: float) -> None:
    """On a node that has no files yet: ask the head for them, and keep them. Raises ClusterError with the head's reason."""
    assert cluster.tls is not None and cluster.token_file is not None
    own = cluster.tls.of(name)
    if Path(own.certificate).exists():
        return
    answer = _ask(cluster.address("head"), port, name, time.monotonic() + wait_seconds)
    write_file(Path(own.ca), answer["ca"].encode(), private=False)
    write_file(Path(own.key), answer["key"].encode(), private=True)
    write_file(Path(cluster.token_file), answer["token"].encode(), private=True)
    write_file(Path(own.certificate), answer["certificate"].encode(), private=False)  # last: it says that all are there


def _ask(host: str, port: int, name: str, give_up: float) -> Mapping[str, str]:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the authority is what we ask for
    while True:
        connection = http.client.HTTPSConnection(host, port, timeout=5, context=context)
        try:
            connection.request("POST", f"/{name}")
            response = connection.getresponse()
            content: dict[str, str] = json.loads(response.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            if time.monotonic() > give_up:
                raise ClusterError(
                    f"{name} has no certificate, and nobody hands one out at {host}:{port}: {error}",
                    "is the head up (`datalocal head --enrol`)? Or copy the files that `datalocal cluster certificates` makes",
                ) from None
            time.sleep(_RETRY_SECONDS)
            continue
        finally:
            connection.close()
        if "refused" in content:
            raise ClusterError(f"the head refused to enrol {name}: {content['refused']}", content["hint"])
        return content


def _given(cluster: Cluster, name: str) -> Path:
    assert cluster.tls is not None
    return Path(cluster.tls.ca).with_name(f".given-{name}")


def _answer(cluster: Cluster, name: str, waiting: set[str]) -> tuple[int, dict[str, str]]:
    """What the head says to who asks for the files of `name`."""
    if name not in {node.name for node in cluster.nodes}:
        return 404, {"refused": f"the cluster file has no node {name!r}", "hint": "give head and workers the same file"}
    try:
        _given(cluster, name).touch(exist_ok=False)
    except FileExistsError:
        return 403, {
            "refused": "its files were handed out already",
            "hint": f"if they are lost: delete {_given(cluster, name)} on the head, and start head and worker again",
        }
    waiting.discard(name)
    own = own_tls(cluster, name)
    assert own is not None and cluster.token_file is not None
    files = {"ca": own.ca, "certificate": own.certificate, "key": own.key, "token": cluster.token_file}
    return 200, {what: Path(path).read_text(encoding="ascii") for what, path in files.items()}


def _end(server: BaseServer) -> None:
    server.shutdown()
    server.server_close()


def _handler(cluster: Cluster, waiting: set[str]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        timeout = 10

        def do_POST(self) -> None:
            name = self.path.removeprefix("/")
            status, content = _answer(cluster, name, waiting)
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            log.info("enrolment: %s from %s: %d", name, self.client_address[0], status)
            if not waiting:  # nobody is left to come: stop listening, from another thread than the one that serves
                threading.Thread(target=_end, args=(self.server,), name="datalocal-enrolment-end", daemon=True).start()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002  # the base class's name
            """Told above."""

    return Handler
