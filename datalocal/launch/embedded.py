"""The embedded cluster: one process per node on this machine, one folder per node as its disk.

State lies in `<home>/.clusters/<name>/`: `cluster.json`, `token` (readable by its owner only), `processes.json`, a log per
process, and `nodes/<node>/`, the nodes' disks. The folders outlive `down`; they are the truth about replicas.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datalocal.errors import ClusterError
from datalocal.launch.process import Identity, Starting, stop
from datalocal.launch.site import Site, clear_away, site_of
from datalocal.spec.cluster import Cluster
from datalocal.storage.client import Store
from datalocal.storage.counting import ByteCounter
from datalocal.storage.opening import open_store


def home() -> Path:
    """`$DATALOCAL_HOME`, or `runs/` where the user stands."""
    return Path(os.environ.get("DATALOCAL_HOME") or "runs").resolve()


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterHandle:
    """A cluster that is up: where its parts are. `token` is a secret."""

    cluster: Cluster
    folder: Path
    scheduler: str
    dashboard: str
    stores: dict[str, str]
    processes: dict[str, Identity]
    owner: Identity | None
    """The process that brought the cluster up for its own use and will take it down; None: it was started to stay."""
    token: str = field(repr=False)
    tls: None = None
    """Nobody else can listen on these wires: no certificates."""

    def store(self, counter: ByteCounter) -> Store:
        """The store as the head sees it: it has no folder of its own."""
        return open_store(self.cluster, node="head", root=None, stores=self.stores, token=self.token, counter=counter)

    @property
    def site(self) -> Site:
        """Where its processes are."""
        return site_of(self.cluster, self.folder)

    @property
    def alive(self) -> tuple[str, ...]:
        """Names of the nodes whose processes live."""
        return tuple(name for name in self.stores if self.processes[name].alive)


def folder_of(home: Path, name: str) -> Path:
    """Where the state of the cluster `name` lies."""
    return home / ".clusters" / name


def node_root(home: Path, cluster: str, node: str) -> Path:
    """The folder that is the node's disk."""
    return folder_of(home, cluster) / "nodes" / node


def up(
    cluster: Cluster, home: Path, *, hold: bool = False, own: bool = False, dashboard: bool = False, port: int = 0
) -> ClusterHandle:
    """Start the cluster, or the nodes of it that are not running. `hold`: its processes end with this process.

    `own` says so to others, who then do not start runs on it.
    Raises ClusterError: a node that does not start (with its log), a different cluster of that name, a port in use.
    """
    folder = folder_of(home, cluster.name)
    site_of(cluster, folder)  # a cluster that others start is refused before anything of it is written
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        return _up(cluster, home, folder, hold=hold, own=own, dashboard=dashboard, port=port)


def _up(
    cluster: Cluster, home: Path, folder: Path, *, hold: bool, own: bool, dashboard: bool, port: int
) -> ClusterHandle:
    running = find(home, cluster.name)
    if running is not None and running.cluster != cluster:
        raise ClusterError(
            f"a cluster called {cluster.name!r} with another configuration is up",
            f"take it down first: datalocal cluster down {cluster.name}",
        )
    token = running.token if running else secrets.token_urlsafe(32)
    _write_private(folder / "token", token)
    (folder / "cluster.json").write_text(cluster.model_dump_json(indent=1), encoding="utf-8")
    site = site_of(cluster, folder)
    daemons = site.prepare(running.processes if running else {}, hold=hold)
    started: list[Starting] = []
    try:
        if running is None:
            head = Starting(
                "datalocal.launch.head",
                "head",
                folder / "logs" / "head.log",
                message={"host": cluster.address("head"), "port": port, "dashboard": dashboard},
                hold=hold,
                within=site.command("head"),
            )
            started.append(head)
            told = head.ready()
            scheduler, url = told["scheduler"], told["dashboard"]
            processes, stores = {"head": head.identity}, {}
        else:
            scheduler, url = running.scheduler, running.dashboard
            processes, stores = dict(running.processes), dict(running.stores)
        processes |= daemons
        missing = [node.name for node in cluster.nodes if node.name not in processes or not processes[node.name].alive]
        nodes = []
        for name in missing:
            message = {
                **site.message(name),
                "node": name,
                "host": cluster.address(name),
                "root": str(node_root(home, cluster.name, name)),
                "cluster": cluster.model_dump(mode="json"),
                "scheduler": scheduler,
                "token": token,
            }
            log = folder / "logs" / f"{name}.log"
            within = site.command(name)
            nodes.append(Starting("datalocal.launch.node", name, log, message=message, hold=hold, within=within))
            started.append(nodes[-1])
        for node in nodes:
            stores[node.name] = node.ready()["store"]
            processes[node.name] = node.identity
    except BaseException:
        for process in started:
            process.process.kill()
            process.process.wait()
        stop(list(daemons.values()))
        if running is None:
            clear_away(folder)
        raise
    handle = ClusterHandle(
        cluster=cluster,
        folder=folder,
        scheduler=scheduler,
        dashboard=url,
        stores={node.name: stores[node.name] for node in cluster.nodes},
        processes=processes,
        owner=Identity.of(os.getpid()) if own else None,
        token=token,
    )
    _save(handle)
    _HELD.extend(started if hold else [])
    return handle


_HELD: list[Starting] = []
"""Keeps the pipes of held processes open: their closing is what ends the processes."""


def find(home: Path, name: str) -> ClusterHandle | None:
    """The cluster `name` if its head is alive, else None."""
    folder = folder_of(home, name)
    try:
        state = json.loads((folder / "processes.json").read_text(encoding="utf-8"))
        cluster = Cluster.model_validate_json((folder / "cluster.json").read_text(encoding="utf-8"))
        token = (folder / "token").read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    handle = ClusterHandle(
        cluster=cluster,
        folder=folder,
        scheduler=state["scheduler"],
        dashboard=state["dashboard"],
        stores=state["stores"],
        processes={name: Identity(**identity) for name, identity in state["processes"].items()},
        owner=Identity(**state["owner"]) if state["owner"] else None,
        token=token,
    )
    return handle if handle.processes["head"].alive else None


def names(home: Path) -> list[str]:
    """The clusters that have state below `home`, up or down."""
    folder = home / ".clusters"
    return sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def down(home: Path, name: str) -> list[str]:
    """Stop whatever of the cluster still runs, also after a crash; the nodes' folders stay. Names what was stopped."""
    alive = leftovers(home, name)
    stop(list(alive.values()))
    clear_away(folder_of(home, name))
    (folder_of(home, name) / "processes.json").unlink(missing_ok=True)
    for held in [held for held in _HELD if held.process.pid in {identity.pid for identity in alive.values()}]:
        held.process.wait(5)
        _HELD.remove(held)
    return list(alive)


def leftovers(home: Path, name: str) -> dict[str, Identity]:
    """The cluster's processes that run, whether or not its head does."""
    try:
        state = json.loads((folder_of(home, name) / "processes.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    processes = {process: Identity(**identity) for process, identity in state["processes"].items()}
    return {process: identity for process, identity in processes.items() if identity.alive}


def remove(home: Path, name: str) -> None:
    """Delete the folders of a cluster that is down, its nodes' data with them. Raises ClusterError while it is up."""
    if find(home, name) is not None:
        raise ClusterError(f"the cluster {name!r} is up", f"take it down first: datalocal cluster down {name}")
    shutil.rmtree(folder_of(home, name), ignore_errors=True)


def status(home: Path, name: str) -> dict[str, Any]:
    """What is up, as plain values: {name, up, scheduler, dashboard, nodes: [{node, role, rack, alive, pid, store, folder}]}."""
    handle = find(home, name)
    if handle is None:
        return {"name": name, "up": False, "scheduler": None, "dashboard": None, "nodes": []}
    return {
        "name": name,
        "up": True,
        "scheduler": handle.scheduler,
        "dashboard": handle.dashboard or None,
        "nodes": [
            {
                "node": node.name,
                "role": node.role,
                "rack": node.rack,
                "alive": handle.processes[node.name].alive,
                "pid": handle.processes[node.name].pid,
                "store": handle.stores[node.name],
                "folder": str(handle.folder / "nodes" / node.name),
            }
            for node in handle.cluster.nodes
        ],
    }


@contextlib.contextmanager
def running(cluster: Cluster, home: Path, *, share: bool = False) -> Iterator[ClusterHandle]:
    """The cluster if it is up, else one brought up for the while, which ends with this process.

    A cluster that another process brought up for its own while may go away under us: it is refused, but for short
    looks (`share`).
    """
    found = find(home, cluster.name)
    if found is not None:
        ours = found.owner is not None and found.owner.pid in {os.getpid(), os.getppid()}  # its own run may use it
        if found.owner is not None and found.owner.alive and not share and not ours:
            raise ClusterError(
                f"the cluster {cluster.name!r} was brought up by process {found.owner.pid} for its own run and ends with it",
                "wait for that run, or start the cluster to stay, for several runs: datalocal cluster up",
            )
        if found.cluster != cluster:
            raise ClusterError(
                f"the cluster {cluster.name!r} is up with another configuration than the file says",
                f"take it down first (datalocal cluster down {cluster.name}), or use the file it was started from",
            )
        with found.site.entered():
            yield found
        return
    handle = up(cluster, home, hold=True, own=True)
    try:
        with handle.site.entered():
            yield handle
    finally:
        down(home, cluster.name)


def _save(handle: ClusterHandle) -> None:
    state = {
        "scheduler": handle.scheduler,
        "dashboard": handle.dashboard,
        "stores": handle.stores,
        "processes": {
            name: {"pid": identity.pid, "created": identity.created} for name, identity in handle.processes.items()
        },
        "owner": {"pid": handle.owner.pid, "created": handle.owner.created} if handle.owner else None,
    }
    temporary = handle.folder / ".processes.json"
    temporary.write_text(json.dumps(state, indent=1), encoding="utf-8")
    temporary.replace(handle.folder / "processes.json")


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Two commands that bring the same cluster up at once do it one after the other."""
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _write_private(path: Path, content: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(content)
