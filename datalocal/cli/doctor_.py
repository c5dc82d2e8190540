"""`datalocal doctor`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from datalocal.cli.find import cluster_path, home
from datalocal.cli.options import cluster_option, echo_json, json_option

if TYPE_CHECKING:
    from datalocal.execution.dask import DaskExecutor
    from datalocal.launch.embedded import ClusterHandle
    from datalocal.spec.cluster import Cluster


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One check: what was found, and how to mend it."""

    check: str
    state: Literal["ok", "warn", "fail"]
    found: str
    mend: str = ""


@click.command("doctor", short_help="Check this machine and the cluster, and say how to mend what is wrong.")
@cluster_option
@json_option
def command(cluster_file: str | None, as_json: bool) -> int:
    """Check host names, disk, ports, GPUs, meters, versions, nodes and HDFS; each finding says how to mend it.

    Exits with 1 when a check fails.
    """
    from datalocal.spec.cluster import load_cluster

    cluster = load_cluster(cluster_path(cluster_file))
    findings = list(examine(cluster, home()))
    failed = any(finding.state == "fail" for finding in findings)
    if as_json:
        echo_json({"cluster": cluster.name, "ok": not failed, "checks": [asdict(finding) for finding in findings]})
    else:
        colours = {"ok": "green", "warn": "yellow", "fail": "red"}
        for finding in findings:
            click.echo(
                f"{click.style(f'{finding.state:4}', fg=colours[finding.state])} {finding.check}: {finding.found}"
            )
            if finding.mend:
                click.echo(f"     {finding.mend}")
    return 1 if failed else 0


def examine(cluster: Cluster, where: Path) -> Iterator[Finding]:
    """Every check, the cheap ones first."""
    yield _host_name()
    yield _disk(cluster, where)
    yield _port()
    yield _gpus()
    yield from _meters(cluster)
    if cluster.kind == "existing":
        from datalocal.cli.doctor_existing import examine_existing

        yield from examine_existing(cluster)
        return
    yield from _nodes(cluster, where)
    yield _leftovers(where)


def _host_name() -> Finding:
    import socket

    name = socket.gethostname()
    try:
        address = socket.gethostbyname(name)
    except OSError as error:
        return Finding(
            check="host name",
            state="warn",
            found=f"{name} does not resolve ({error})",
            mend="add it to /etc/hosts: on a cluster of several hosts, locality dies silently when names and addresses differ",
        )
    try:
        back = socket.gethostbyaddr(address)[0]
    except OSError:
        back = ""
    if back.split(".")[0] not in {name.split(".")[0], "localhost"}:
        return Finding(
            check="host name",
            state="warn",
            found=f"{name} is {address}, and {address} is {back or 'nobody'}",
            mend="make forward and backward look-up agree (/etc/hosts or DNS); the embedded cluster does not mind",
        )
    return Finding(check="host name", state="ok", found=f"{name} is {address} and back")


def _disk(cluster: Cluster, where: Path) -> Finding:
    import shutil

    from datalocal.units import format_bytes

    place = next(path for path in (where, *where.parents) if path.exists())
    free = shutil.disk_usage(place).free
    floor = cluster.free_disk_floor_bytes
    found = f"{format_bytes(free)} free at {place}; nodes leave {format_bytes(floor)} free"
    if free <= floor:
        return Finding(
            check="disk", state="fail", found=found, mend="free some space, or set DATALOCAL_HOME to another disk"
        )
    if free < floor + 2_000_000_000:
        return Finding(check="disk", state="warn", found=found, mend="a data set with its replicas may not fit")
    return Finding(check="disk", state="ok", found=found)


def _port() -> Finding:
    import socket

    try:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
    except OSError as error:
        return Finding(
            check="ports", state="fail", found=f"loopback refuses a port: {error}", mend="is `lo` up? ip link set lo up"
        )
    return Finding(check="ports", state="ok", found=f"free ports on loopback (for instance {port})")


def _gpus() -> Finding:
    from datalocal.execution.facts import list_gpus

    gpus = list_gpus()
    if not gpus:
        return Finding(
            check="GPUs",
            state="warn",
            found="NVML shows none: training runs on the CPU",
            mend="with a GPU in this machine: install NVIDIA's driver, or give the container access to it (--gpus all)",
        )
    return Finding(check="GPUs", state="ok", found=", ".join(f"{gpu['name']} {gpu['uuid']}" for gpu in gpus))


def _meters(cluster: Cluster) -> Iterator[Finding]:
    from datalocal.metering import MeterAccumulator

    reading = MeterAccumulator().read()
    for kind, key in (("RAPL", "rapl"), ("NVML energy", "gpus")):
        readable = [entry for entry in reading[key] if entry["joules"] is not None]
        reasons = sorted({str(entry["reason"]) for entry in reading[key] if entry["joules"] is None})
        if readable:
            yield Finding(check=f"meter {kind}", state="ok", found=f"{len(readable)} counters")
        else:
            why = "; ".join(reasons) or "there is none"
            mend = (
                ""
                if cluster.power
                else "declare idle_watts and busy_watts under `power` in the cluster config: joules are `missing` else"
            )
            yield Finding(
                check=f"meter {kind}", state="ok" if cluster.power else "warn", found=f"not readable: {why}", mend=mend
            )


def _nodes(cluster: Cluster, where: Path) -> Iterator[Finding]:
    from datalocal.errors import DatalocalError
    from datalocal.execution.dask import DaskExecutor
    from datalocal.launch import embedded

    handle = embedded.find(where, cluster.name)
    if handle is None:
        yield Finding(check="cluster", state="ok", found=f"{cluster.name} is down; a run brings it up for its while")
        return
    dead = [name for name in handle.stores if name not in handle.alive]
    if dead:
        yield Finding(
            check="cluster",
            state="fail",
            found=f"dead nodes: {', '.join(dead)}",
            mend="start them again: datalocal cluster up",
        )
    else:
        yield Finding(check="cluster", state="ok", found=f"{cluster.name} is up with {len(handle.stores)} nodes")
    with handle.site.entered():
        if cluster.hdfs is not None:
            from datalocal.cli.doctor_hdfs import examine_hdfs

            yield from examine_hdfs(cluster)
        try:
            executor = DaskExecutor(cluster=cluster, scheduler=handle.scheduler, run="doctor", token=handle.token)
        except DatalocalError as error:
            yield Finding(check="scheduler and versions", state="fail", found=error.message, mend=error.hint)
            return
        yield from _workers(handle, executor)


def _workers(handle: ClusterHandle, executor: DaskExecutor) -> Iterator[Finding]:
    try:
        facts = executor.facts()
        missing = [name for name in handle.alive if name not in facts]
        if missing:
            yield Finding(
                check="workers",
                state="fail",
                found=f"no worker answers for {', '.join(missing)}",
                mend=f"see their logs in {handle.folder / 'logs'}, then take the cluster down and up again",
            )
        else:
            yield Finding(
                check="workers", state="ok", found=f"{len(facts)} workers answer under the names of their nodes"
            )
        yield Finding(check="versions", state="ok", found="Python and datalocal are the same everywhere")
    finally:
        executor.close()


def _leftovers(where: Path) -> Finding:
    from datalocal.launch import embedded

    left = [
        name for name in embedded.names(where) if embedded.find(where, name) is None and embedded.leftovers(where, name)
    ]
    if left:
        return Finding(
            check="leftover processes",
            state="fail",
            found=f"nodes without a head: {', '.join(left)}",
            mend="; ".join(f"datalocal cluster down {name}" for name in left),
        )
    return Finding(check="leftover processes", state="ok", found="none")
