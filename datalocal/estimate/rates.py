"""What the resources of a cluster can do: fitted to a run, declared by its owner, or not known. Values.

Work on a processor is counted in core-seconds: what one core does in one second when it does nothing else. Nodes that are
processes of one host share its cores and its disk, so there the host's cores are what runs out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import median
from typing import Any, Literal

from datalocal.estimate.steps import GAMMA
from datalocal.spec.cluster import Cluster, Node

Origin = Literal["modelled.calibrated", "assumed"]

PAYLOAD_SHARE = 1448 / 1514
"""Of the bytes that `tc` counts: a full Ethernet frame of 1,514 bytes carries 1,448 of TCP (RFC 791, 9293, 7323: headers of 14, 20
and 20 bytes, and 12 for time stamps)."""

OVERHEADS = ("staging", "start", "select", "gang", "cold")


@dataclass(frozen=True, slots=True, kw_only=True)
class Overhead:
    """Seconds that a stage takes whatever its work: processes that start, and what the run does around them."""

    process_core_seconds: float = 0.0
    """Of each process; processes of one host start on its cores together."""
    fixed_seconds: float = 0.0
    least: float = 1.0
    """Processes for each core that one process alone counts as: 1 where a start keeps to one core."""

    def seconds(self, processes: int, cores: float) -> float:
        """Of a stage that starts `processes` on one host with `cores`."""
        return self.fixed_seconds + self.process_core_seconds * max(self.least, processes / cores)


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeRates:
    """One node; None is not known."""

    host: str
    cores: int
    slots: int
    read_bytes_per_second: float | None = None
    """From its own disk, or from the DataNode beside it."""
    write_bytes_per_second: float | None = None
    """Of results, with what it takes that they stay."""
    copy_bytes_per_second: float | None = None
    """Of staged copies; None: as fast as it reads."""
    link_bytes_per_second: float | None = None
    """Each way."""
    preprocess_core_seconds: float | None = None
    """Of an image: decode, transform, encode."""
    train_core_seconds: float | None = None
    """Of an image, on this node's rank; times its cores it is the rank's own time."""
    validate_core_seconds: float | None = None
    serve_seconds_per_byte: float = 0.0
    """Core-seconds spent on a byte that another node reads here."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """A cluster's rates."""

    origin: Origin
    source: str
    """The run, or the file."""
    nodes: Mapping[str, NodeRates]
    host_cores: Mapping[str, float]
    staging: Overhead = Overhead()
    """Of copying stages, which start no process."""
    start: Overhead = Overhead()
    """Of preprocess stages."""
    select: Overhead = Overhead()
    """Of asking every shard which rows validate."""
    gang: Overhead = Overhead()
    """Of a gang whose nodes have trained before."""
    cold: Overhead = Overhead()
    """On top, of the nodes that have not."""
    task_core_seconds: float = 0.0
    """Of each task beside its images."""
    sync_bytes_per_second: float | None = None
    """Gradients that a core sends in a second; None: as fast as the node's link."""
    sync_within: bool = False
    """What synchronising costs is inside the rate of training."""
    sync_latency_seconds: float = 0.0
    gamma: float = GAMMA
    loopback: bool = False
    """What goes from node to node never leaves the host: moving it is work of its cores, and nothing else limits it."""
    checkpoint_seconds: float = 0.0
    output_share: float | None = None
    """Bytes that preprocess wrote per byte that it read, in the run."""
    notes: tuple[str, ...] = field(default=())

    @property
    def on_host(self) -> Mapping[str, int]:
        """How many of the cluster's nodes are on each host."""
        return Counter(node.host for node in self.nodes.values())

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self) | {"notes": list(self.notes)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Rates:
        """The inverse of `to_json`."""
        overheads = {name: Overhead(**content[name]) for name in OVERHEADS}
        nodes = {name: NodeRates(**node) for name, node in content["nodes"].items()}
        return cls(**{**content, **overheads, "nodes": nodes, "notes": tuple(content["notes"])})


def hosts_of(cluster: Cluster, hosts: Mapping[str, str] | None = None) -> dict[str, str]:
    """The physical host of each node: as a run found it, else by `shared_host`."""
    return {
        node.name: (hosts or {}).get(node.name) or (cluster.name if cluster.shared_host else node.name)
        for node in cluster.nodes
    }


def cores_of_hosts(
    nodes: Sequence[Node], hosts: Mapping[str, str], measured: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Cores of each host: as measured, else what its nodes may use together."""
    declared: Counter[str] = Counter()
    for node in nodes:
        declared[hosts[node.name]] += node.cores * node.slots
    return {host: float((measured or {}).get(host) or count) for host, count in declared.items()}


def declared(cluster: Cluster, *, source: str, machine_cores: int | None = None) -> Rates | None:
    """The rates that the cluster file gives; None where it gives none.

    `machine_cores`: of this machine, where the nodes are its processes.
    """
    merged = {
        node.name: cluster.rates.model_dump() | node.rates.model_dump(exclude_none=True) for node in cluster.nodes
    }
    if not any(value is not None for rates in merged.values() for value in rates.values()):
        return None
    hosts = hosts_of(cluster)
    measured = {cluster.name: float(machine_cores)} if machine_cores and cluster.shared_host else None
    nodes = {}
    for node in cluster.nodes:
        rates = merged[node.name]
        nodes[node.name] = NodeRates(
            host=hosts[node.name],
            cores=node.cores,
            slots=node.slots,
            read_bytes_per_second=rates["disk_bytes_per_second"],
            write_bytes_per_second=rates["disk_bytes_per_second"],
            link_bytes_per_second=rates["link_bytes_per_second"] or shaped(cluster, node),
            preprocess_core_seconds=_inverse(rates["preprocess_images_per_second"]),
            train_core_seconds=_inverse(rates["train_images_per_second"], node.cores),
            validate_core_seconds=_inverse(rates["train_images_per_second"], node.cores),
            serve_seconds_per_byte=rates["serve_seconds_per_byte"] or 0.0,
        )
    starts = [rates["task_start_seconds"] or 0.0 for rates in merged.values()]
    gangs = [rates["gang_start_seconds"] or 0.0 for rates in merged.values()]
    return Rates(
        origin="assumed",
        source=source,
        nodes=nodes,
        host_cores=cores_of_hosts(cluster.nodes, hosts, measured),
        loopback=cluster.kind == "embedded" and cluster.shared_host,
        start=Overhead(process_core_seconds=max(starts)),
        select=Overhead(process_core_seconds=max(starts)),
        gang=Overhead(process_core_seconds=max(gangs)),
        notes=(f"Synchronisation is taken to hide behind computing with gamma {GAMMA:g}; nobody measured it here.",),
    )


def filled(rates: Rates) -> Rates:
    """The same rates with the median of the others for nodes that nobody measured."""
    names = (
        "read_bytes_per_second",
        "write_bytes_per_second",
        "copy_bytes_per_second",
        "link_bytes_per_second",
        "preprocess_core_seconds",
        "train_core_seconds",
        "validate_core_seconds",
    )
    middle: dict[str, Any] = {}
    for name in names:
        known = [value for node in rates.nodes.values() if (value := getattr(node, name)) is not None]
        if known:
            middle[name] = median(known)
    nodes = {
        key: replace(node, **{name: value for name, value in middle.items() if getattr(node, name) is None})
        for key, node in rates.nodes.items()
    }
    return replace(rates, nodes=nodes)


def shaped(cluster: Cluster, node: Node) -> float | None:
    """What `tc` leaves of the node's link for payload, in bytes per second; None where nothing shapes it."""
    rate_mbit = node.rate_mbit or cluster.network.rate_mbit
    return rate_mbit * 1e6 / 8 * PAYLOAD_SHARE if rate_mbit else None


def _inverse(per_second: float | None, cores: int = 1) -> float | None:
    return None if per_second is None else cores / per_second
