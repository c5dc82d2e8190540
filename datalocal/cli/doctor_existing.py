"""What `datalocal doctor` proves of a cluster that others run, before the first job: from the head, and from every node."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datalocal.cli.doctor_ import Finding
from datalocal.cli.doctor_hdfs import examine_hdfs

if TYPE_CHECKING:
    import pyarrow as pa

    from datalocal.execution.base import NodeFacts
    from datalocal.execution.dask import DaskExecutor
    from datalocal.execution.examination import Examination
    from datalocal.spec.cluster import Cluster
    from datalocal.spec.joining import Tls

_SOON_DAYS = 30


def examine_existing(cluster: Cluster) -> Iterator[Finding]:
    """Certificates and token here, then the scheduler, then each node as it sees itself and the others."""
    from datalocal.errors import DatalocalError
    from datalocal.execution.dask import DaskExecutor
    from datalocal.launch.existing import own_tls, read_token

    assert cluster.scheduler is not None
    try:
        token, tls = read_token(cluster), own_tls(cluster, "client")
        yield Finding(
            check="token", state="ok", found=f"{cluster.token_file} is there, and only for its owner and group"
        )
        yield from _certificates(tls)
        executor = DaskExecutor(cluster=cluster, scheduler=cluster.scheduler, run="doctor", token=token, tls=tls)
    except DatalocalError as error:
        yield Finding(check="scheduler and versions", state="fail", found=error.message, mend=error.hint)
        return
    try:
        facts = dict(executor.facts())
        yield Finding(
            check="scheduler", state="ok", found=f"{cluster.scheduler} answers" + (" over TLS" if tls else "")
        )
        yield _present(cluster, facts)
        yield Finding(check="versions", state="ok", found="Python and datalocal are the same everywhere")
        examined = _examinations(executor, cluster, facts)
        for name in sorted(facts):
            if name in examined:
                yield from _node(cluster, name, examined[name], facts[name])
            else:
                mend = "its worker's own output says why; start it again"
                yield Finding(
                    check=f"{name}: answers", state="fail", found="it is there and does not answer", mend=mend
                )
        if cluster.hdfs is not None:
            yield from examine_hdfs(cluster)
    finally:
        executor.close()


def _certificates(tls: Tls | None) -> Iterator[Finding]:
    from datalocal.launch.certificates import days_left

    if tls is None:
        yield Finding(check="TLS", state="ok", found="none, and nothing listens beyond loopback")
        return
    for path in (tls.ca, tls.certificate):
        days = days_left(Path(path))
        state: Any = "fail" if days < 0 else "warn" if days < _SOON_DAYS else "ok"
        mend = (
            "" if state == "ok" else "delete it and run `datalocal cluster certificates` again, where the authority is"
        )
        yield Finding(check="certificate", state=state, found=f"{path} is good for {days:.0f} days", mend=mend)


def _present(cluster: Cluster, facts: Mapping[str, NodeFacts]) -> Finding:
    missing = [node.name for node in cluster.nodes if node.name not in facts]
    if missing:
        return Finding(
            check="nodes",
            state="fail",
            found=f"no worker answers for {', '.join(missing)}",
            mend="start it on its host: datalocal worker --cluster FILE --node NAME; its own output says why it ended",
        )
    return Finding(check="nodes", state="ok", found=f"{len(facts)} workers answer under the names of their nodes")


class _Reached:
    """A run process that nodes can reach, and nothing else."""

    def log(self, arm: str, task: str, text: str) -> None: ...

    def record(self, kind: str, content: dict[str, Any]) -> None: ...

    def put_checkpoint(self, arm: str, name: str, content: pa.Buffer) -> None: ...

    def get_checkpoint(self, arm: str, name: str) -> pa.Buffer:
        raise KeyError(name)


def _examinations(
    executor: DaskExecutor, cluster: Cluster, facts: Mapping[str, NodeFacts]
) -> Mapping[str, Examination]:
    from datalocal.execution.examination import examine_node
    from datalocal.storage.sink import Sink

    hosts = sorted({host for node in cluster.nodes for host in (cluster.address(node.name), *node.hosts)})
    sink = Sink(token=executor.token, code={}, handler=_Reached(), host=executor.address, tls=executor.tls)
    try:
        stores = {name: told.store for name, told in facts.items()}
        return executor.ask(examine_node, stores, sink.location, hosts)
    finally:
        sink.close()


def _node(cluster: Cluster, name: str, told: Examination, facts: NodeFacts) -> Iterator[Finding]:
    yield _mapping(cluster, name, told)
    yield _wires(name, told)
    yield _disk(cluster, name, told)
    yield _share(cluster, name, told)
    gpus = ", ".join(f"{gpu['name']} {gpu['uuid']}" for gpu in facts.gpus)
    yield Finding(check=f"{name}: GPUs", state="ok", found=gpus or "none: training there runs on the CPU")
    for meter, why in told.meters.items():
        mend = "declare idle_watts and busy_watts under `power` in the cluster file: joules are `missing` else"
        yield Finding(
            check=f"{name}: meter {meter}",
            state="warn" if why and cluster.power is None else "ok",
            found=f"not readable: {why}" if why else "readable",
            mend=mend if why and cluster.power is None else "",
        )


def _mapping(cluster: Cluster, name: str, told: Examination) -> Finding:
    """The node's own names lead to itself, the others' names lead somewhere: locality dies silently where they do not."""
    unknown = sorted(host for host, address in told.resolved.items() if not address)
    own = [cluster.address(name), *cluster.node(name).hosts]
    local = {*told.own_addresses, *(f"127.0.0.{n}" for n in range(256))}
    strange = [
        f"{host} is {told.resolved[host]}" for host in dict.fromkeys(own) if told.resolved[host] not in {"", *local}
    ]
    if strange:
        return Finding(
            check=f"{name}: host mapping",
            state="fail",
            found=f"{', '.join(strange)}, which {told.host_name} ({', '.join(told.own_addresses)}) has not",
            mend="is the worker started on the right host? Else mend `hosts` in the cluster file, or the host's name service",
        )
    if unknown:
        return Finding(
            check=f"{name}: host mapping",
            state="fail",
            found=f"{told.host_name} cannot resolve {', '.join(unknown)}",
            mend="add them to the name service or to /etc/hosts on that host, or write IP addresses into the cluster file",
        )
    return Finding(
        check=f"{name}: host mapping", state="ok", found=f"{told.host_name} is {', '.join(dict.fromkeys(own))}"
    )


def _wires(name: str, told: Examination) -> Finding:
    if told.unreachable:
        other, why = next(iter(told.unreachable.items()))
        return Finding(
            check=f"{name}: ports",
            state="fail",
            found=f"{len(told.unreachable)} cannot be reached from there: {', '.join(told.unreachable)}. {other}: {why}",
            mend="does a firewall stand between the hosts? Nodes and the submitting host reach each other on any TCP port",
        )
    return Finding(check=f"{name}: ports", state="ok", found="reaches every other node's store and this process")


def _disk(cluster: Cluster, name: str, told: Examination) -> Finding:
    from datalocal.units import format_bytes

    floor = cluster.free_disk_floor_bytes
    found = f"{format_bytes(told.free_bytes)} free; writes leave {format_bytes(floor)}"
    if told.free_bytes <= floor:
        mend = "free some space, or give the node another `folder`"
        return Finding(check=f"{name}: disk", state="fail", found=found, mend=mend)
    return Finding(check=f"{name}: disk", state="ok", found=found)


def _share(cluster: Cluster, name: str, told: Examination) -> Finding:
    """What the node may use of its host."""
    from datalocal.units import format_bytes

    node = cluster.node(name)
    memory = node.memory_bytes
    found = (
        f"{node.cores} cores of {told.cpus}, "
        f"{format_bytes(memory) if memory else 'unbounded memory'} of {format_bytes(told.memory_bytes)}, nice {told.niceness}"
    )
    if node.cores > told.cpus:
        mend = f"`cores` of {name} in the cluster file is more than its worker may use"
        return Finding(check=f"{name}: share", state="warn", found=found, mend=mend)
    return Finding(check=f"{name}: share", state="ok", found=found)
