"""A warm interpreter per node: torch is imported once, agents and ranks are forked from it.

Importing torch and what its optimizers pull in takes about five seconds of a core, in the agent and again in every rank. This
process imports it, runs nothing of the user's, starts no thread and touches no GPU; so a fork of it is a fresh interpreter
that has torch already. It ends, with all it forked, when the node process closes its standard input.

Whoever wants a process runs `stub.py` in its place: the stub hands its three standard descriptors and its environment over,
waits, and ends as the forked process ends. When the stub dies, what was forked for it is killed.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import selectors
import signal
import socket
import struct
import sys
import traceback
from dataclasses import dataclass

from datalocal.tasks.train.stub import MODULES, receive

IMPORTS = ("torch", "torch._dynamo", "torch.optim", "torch.distributed.launcher.api", *MODULES)


@dataclass(slots=True)
class _Forked:
    """One process that was forked, and the connection of the stub that waits for it."""

    pid: int
    connection: socket.socket


class _Warm:
    """The loop: single-threaded, so that a fork copies no lock that another thread holds."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._forked: dict[int, _Forked] = {}
        self._selector = selectors.DefaultSelector()
        self._woken, wake = os.pipe()
        for descriptor in (self._woken, wake):
            os.set_blocking(descriptor, False)
        signal.set_wakeup_fd(wake)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._selector.register(sys.stdin.fileno(), selectors.EVENT_READ, "owner")
        self._selector.register(listener, selectors.EVENT_READ, "new")
        self._selector.register(self._woken, selectors.EVENT_READ, "child")

    def serve(self) -> None:
        """Until the owner is gone."""
        while True:
            for key, _ in self._selector.select():
                match key.data:
                    case "owner":
                        if not os.read(sys.stdin.fileno(), 4096):
                            self._kill_all()
                            return
                    case "new":
                        self._accept()
                    case "child":
                        with contextlib.suppress(BlockingIOError):
                            os.read(self._woken, 4096)
                        self._reap()
                    case int() as pid:  # the stub says nothing more: it is gone
                        self._kill(pid)

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid != os.getuid():
            connection.close()
            return
        module, environment, descriptors = receive(connection)
        pid = os.fork()
        if pid == 0:
            self._become(module, environment, descriptors)
        for descriptor in descriptors:
            os.close(descriptor)
        self._forked[pid] = _Forked(pid, connection)
        self._selector.register(connection, selectors.EVENT_READ, pid)

    def _become(self, module: str, environment: dict[str, str], descriptors: list[int]) -> None:
        """In the fork: take over the stub's place and never come back."""
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.setsid()
            self._selector.close()
            self._listener.close()
            for forked in self._forked.values():
                forked.connection.close()
            for number, descriptor in enumerate(descriptors):
                os.dup2(descriptor, number)
                os.close(descriptor)
            os.environ.clear()
            os.environ.update(environment)
            importlib.import_module(module).main()
            status = 0
        except SystemExit as exit_:
            status = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(Exception):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            forked = self._forked.pop(pid, None)
            if forked is not None:
                with contextlib.suppress(OSError):
                    forked.connection.sendall(json.dumps(os.waitstatus_to_exitcode(status)).encode())
                with contextlib.suppress(KeyError):  # its stub went first
                    self._selector.unregister(forked.connection)
                forked.connection.close()

    def _kill(self, pid: int) -> None:
        forked = self._forked.get(pid)
        if forked is not None:
            self._selector.unregister(forked.connection)
            with contextlib.suppress(OSError):
                os.killpg(pid, signal.SIGKILL)

    def _kill_all(self) -> None:
        for pid in list(self._forked):
            with contextlib.suppress(OSError):
                os.killpg(pid, signal.SIGKILL)


def main() -> None:
    """Import, listen, say where, serve."""
    for module in IMPORTS:
        importlib.import_module(module)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind("\0" + f"datalocal-warm-{os.getpid()}-{os.urandom(8).hex()}")
        listener.listen(64)
        gc.collect()
        gc.freeze()  # a collection in a fork would touch, and so copy, the pages of every module
        address = listener.getsockname()
        os.write(1, address[1:] + b"\n")
        _Warm(listener).serve()


if __name__ == "__main__":
    main()
