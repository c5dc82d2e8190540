"""A process in place of another: asks the node's warm interpreter for a fork, waits for it, ends as it ends.

Runs under `python -S -E` with nothing but the standard library, so that it costs hundredths of a second.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import struct
import sys

FILE = __file__
MODULES = ("datalocal.tasks.train.launcher", "datalocal.tasks.train.rank")
ADDRESS = "DATALOCAL_WARM"
_PR_SET_PDEATHSIG = 1


def command(module: str, *, warm: bool) -> tuple[str, ...]:
    """Arguments of Python for a process that runs `module`: a stub of it, or where nothing is warm the module itself."""
    return ("-S", "-E", FILE, module) if warm else ("-P", "-m", module)


def send(connection: socket.socket, module: str, environment: dict[str, str]) -> None:
    """The request: the module to run, its environment, and our standard input, output and error."""
    content = json.dumps({"module": module, "environment": environment}).encode()
    socket.send_fds(connection, [struct.pack("!I", len(content))], [0, 1, 2])
    connection.sendall(content)


def receive(connection: socket.socket) -> tuple[str, dict[str, str], list[int]]:
    """The other side of `send`. Raises ConnectionError for a request that is not whole or not for one of our modules."""
    head, descriptors, _, _ = socket.recv_fds(connection, 4, 3)
    size = struct.unpack("!I", head)[0] if len(head) == 4 else 0
    content = b""
    while len(content) < size:
        piece = connection.recv(size - len(content))
        if not piece:
            raise ConnectionError("the request ended early")
        content += piece
    request = json.loads(content)
    if request["module"] not in MODULES or len(descriptors) != 3:
        raise ConnectionError(f"no process is forked for {request['module']!r}")
    return request["module"], request["environment"], descriptors


def main() -> None:
    """Be the process that is asked for, as far as our parent can tell."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # our parent gone, we go, and our fork with us
    if os.getppid() != parent:
        os._exit(1)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.connect("\0" + os.environ[ADDRESS])
        send(connection, sys.argv[1], dict(os.environ))
        for descriptor in (0, 1, 2):  # the fork has them; ours would keep pipes open
            os.close(descriptor)
        answer = connection.recv(64)
    status = json.loads(answer) if answer else 1
    if status < 0:  # whoever waits for us is to see the signal
        if -status != signal.SIGKILL:
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    os._exit(status)


if __name__ == "__main__":
    main()
