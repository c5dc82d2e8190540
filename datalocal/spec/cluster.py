"""`cluster-configs/*.yaml`: the nodes, their racks and roles, and what is declared about their power."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, field_validator, model_validator

from datalocal.spec.base import Strict, parse, read_yaml
from datalocal.spec.joining import Tls, absolute, check_joining, scheduler_host

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
Role = Literal["storage", "compute", "array"]


class PowerProfile(Strict):
    """Watts of one physical host as its owner declares them; figures derived from it have the origin `assumed`."""

    idle_watts: float = Field(ge=0)
    busy_watts: float = Field(ge=0)

    @model_validator(mode="after")
    def _ordered(self) -> PowerProfile:
        if self.busy_watts < self.idle_watts:
            raise ValueError(f"busy_watts ({self.busy_watts}) is below idle_watts ({self.idle_watts})")
        return self


class Rates(Strict):
    """What a node can do, as its owner knows it: what `plan` makes seconds of. A node's own entries go before the cluster's."""

    disk_bytes_per_second: float | None = Field(default=None, gt=0, description="its disk, or the DataNode beside it")
    link_bytes_per_second: float | None = Field(default=None, gt=0, description="its link, each way")
    preprocess_images_per_second: float | None = Field(
        default=None, gt=0, description="one core: decode, transform and encode"
    )
    train_images_per_second: float | None = Field(
        default=None, gt=0, description="the node's rank alone, synchronising with nobody"
    )
    task_start_seconds: float | None = Field(default=None, ge=0, description="from start to first image of a process")
    gang_start_seconds: float | None = Field(default=None, ge=0, description="from start to first step of a rank")
    serve_seconds_per_byte: float | None = Field(
        default=None, ge=0, description="what a core of it spends on a byte that another node reads from it"
    )


class Node(Strict):
    """One node. `storage` nodes hold shards and work; `compute` nodes are the central side; an `array` serves it."""

    name: Name
    rack: Name
    role: Role = "storage"
    cores: int = Field(default=1, ge=1)
    slots: int = Field(default=1, ge=1, description="preprocess tasks at a time; each uses all `cores`")
    disk_bytes: int | None = Field(default=None, ge=1, description="capacity of the node's folder; default: its disk")
    gpus: Literal["auto", "none"] = "auto"
    rate_mbit: float | None = Field(
        default=None, gt=0, description="kind netns: its link, each way; default: network's"
    )
    hosts: tuple[str, ...] = Field(
        default=(), description="IP addresses and host names under which others and HDFS know it, the first for dask"
    )
    memory_bytes: int | None = Field(default=None, ge=1, description="tasks that use more are ended; default: no limit")
    nice: int = Field(default=0, ge=0, le=19, description="how far tasks step back for the host's other processes")
    ionice: Literal["normal", "low", "idle"] = Field(default="normal", description="the same for its disks")
    folder: str | None = Field(default=None, description="kind existing: the node's folder on its host")
    environment: str | None = Field(
        default=None, description="kind existing: the Python environment on its host, its folder or a tar archive of it"
    )
    rates: Rates = Field(default=Rates(), description="what this node can do, where it differs from the others")
    price_per_hour: float | None = Field(
        default=None, gt=0, description="what it costs, in any currency, for plans at equal money"
    )


class Network(Strict):
    """The wire of a cluster of network namespaces: a subnet that nobody else sees, and what `tc` makes of its links."""

    subnet: str = "10.77.0.0/24"
    rate_mbit: float | None = Field(default=None, gt=0, description="every node's link, each way; default: unshaped")

    @field_validator("subnet")
    @classmethod
    def _private(cls, subnet: str) -> str:
        network = ipaddress.IPv4Network(subnet)
        if network.prefixlen > 24 or not network.is_private:
            raise ValueError(f"{subnet} is not a private IPv4 network with room for 250 hosts, like 10.77.0.0/24")
        return subnet


class Storage(Strict):
    """Where data sets lie: in the nodes' own folders (`embedded`), or in HDFS, used where it is.

    Data sets in HDFS are folders below `root`. What is left out comes from `conf_dir` (core-site.xml, hdfs-site.xml), or,
    with `kind: netns`, from the HDFS that is brought up with the cluster.
    """

    kind: Literal["embedded", "hdfs"] = "embedded"
    namenode: str | None = Field(
        default=None, pattern=r"^hdfs://[^/]+$", description="hdfs://host:port or a name service"
    )
    webhdfs: tuple[str, ...] = Field(default=(), description="http://host:port of each NameNode, active or not")
    conf_dir: str | None = Field(default=None, description="default: $HADOOP_CONF_DIR of each process")
    root: str = Field(default="/datalocal", pattern=r"^(/[^/]+)+$", description="folder below which data sets lie")
    user: str | None = Field(default=None, description="default: who runs the process")
    authentication: Literal["simple", "kerberos"] = "simple"
    client: Literal["native", "libhdfs", "auto"] = Field(
        default="native", description="auto: libhdfs where it loads, else native"
    )
    socket_timeout_seconds: float = Field(default=3.0, gt=0, description="after it a silent DataNode is left")
    namenode_timeout_seconds: float = Field(default=10.0, gt=0, description="how long one that is away is asked again")
    datanode_port: int = Field(default=9866, ge=1, le=65535, description="where DataNodes serve data")
    datanode_http_port: int = Field(default=9864, ge=1, le=65535, description="where DataNodes serve JMX")
    datanode_log: str | None = Field(default=None, description="on each node, the file with the DataNode's clienttrace")

    @model_validator(mode="after")
    def _whole(self) -> Storage:
        fields = type(self).model_fields
        given = [name for name, field in fields.items() if getattr(self, name) != field.default]
        if self.kind == "embedded" and given:
            raise ValueError(f"{', '.join(sorted(given))}: only with `kind: hdfs`")
        return self


class Cluster(Strict):
    """A cluster as a value: what placement and accounting need to know of it."""

    name: Name
    kind: Literal["embedded", "netns", "existing"] = Field(
        default="embedded",
        description="embedded: processes on loopback; netns: each in a network namespace; existing: started by others",
    )
    storage: Storage = Storage()
    network: Network = Network()
    scheduler: str | None = Field(
        default=None, pattern=r"^(tcp|tls)://[^/:]+:[0-9]+$", description="kind existing: where nodes and runs meet"
    )
    tls: Tls | None = Field(default=None, description="kind existing: certificates; needed beyond loopback")
    token_file: str | None = Field(default=None, description="kind existing: file with the secret of stores and runs")
    replication: int = Field(default=3, ge=1)
    block_bytes: int = Field(default=128 * 1024 * 1024, ge=64 * 1024, description="a shard is at most one block")
    free_disk_floor_bytes: int = Field(default=500_000_000, ge=0, description="free space that writes leave on a disk")
    shared_host: bool = Field(default=True, description="all nodes are processes of one physical host")
    power: PowerProfile | None = None
    rates: Rates = Field(default=Rates(), description="what every node can do, for seconds before anything runs")
    nodes: tuple[Node, ...] = Field(min_length=1)

    @field_validator("nodes")
    @classmethod
    def _distinct(cls, nodes: tuple[Node, ...]) -> tuple[Node, ...]:
        names = [node.name for node in nodes]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"node name given twice: {', '.join(twice)}")
        if "head" in names:
            raise ValueError("`head` is the runner's own name; call the node something else")
        if taken := {"namenode", "hdfs", "switch"} & set(names):
            raise ValueError(f"`{min(taken)}` has another meaning here; call the node something else")
        return nodes

    @model_validator(mode="after")
    def _replicable(self) -> Cluster:
        storage = len(self.storage_nodes)
        if not storage:
            raise ValueError("no node has the role `storage`")
        if self.replication > storage:
            raise ValueError(f"replication {self.replication} needs as many storage nodes, there are {storage}")
        return self

    @model_validator(mode="after")
    def _reachable(self) -> Cluster:
        if self.kind != "netns" and self.network != Network():
            raise ValueError("`network` shapes the wires of `kind: netns`; other clusters have wires of their own")
        if self.kind == "netns" and len(self.nodes) > 200:
            raise ValueError(f"{len(self.nodes)} nodes are more than the 200 that a subnet has addresses for")
        if self.kind == "netns" and (self.storage.namenode or self.storage.webhdfs or self.storage.conf_dir):
            raise ValueError("`kind: netns` brings its own HDFS up: leave namenode, webhdfs and conf_dir out")
        check_joining(self)
        return self

    @property
    def storage_nodes(self) -> tuple[Node, ...]:
        """The nodes that hold shards, in file order."""
        return tuple(node for node in self.nodes if node.role == "storage")

    @property
    def compute_nodes(self) -> tuple[Node, ...]:
        """The central side, in file order."""
        return tuple(node for node in self.nodes if node.role == "compute")

    @property
    def array_nodes(self) -> tuple[Node, ...]:
        """Storage arrays behind the central side, in file order."""
        return tuple(node for node in self.nodes if node.role == "array")

    def node(self, name: str) -> Node:
        """The node called `name`. Raises KeyError."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(name)

    def address(self, name: str) -> str:
        """Address of node `name`, of the `head` or the `namenode`, for who connects to it. Raises KeyError."""
        if self.kind == "netns":
            network = ipaddress.IPv4Network(self.network.subnet)
            places = {"head": 1, "namenode": 2} | {node.name: 11 + i for i, node in enumerate(self.nodes)}
            return str(network[places[name]])
        if name == "head":
            return scheduler_host(self.scheduler) if self.scheduler else "127.0.0.1"
        return next(iter(self.node(name).hosts), "127.0.0.1")

    @property
    def node_of_host(self) -> dict[str, str]:
        """Node by IP address or host name (lower case), as HDFS may name it; the node's own name is one of them."""
        found: dict[str, str] = {}
        for node in self.nodes:
            own = (self.address(node.name),) if self.kind == "netns" else ()
            for host in (*own, *node.hosts, node.name):
                found.setdefault(host.lower(), node.name)
        return found

    @property
    def hdfs(self) -> Storage | None:
        """Where HDFS is, also where the launcher brings it up; None where data sets lie in the nodes' folders."""
        if self.storage.kind != "hdfs":
            return None
        if self.kind != "netns":
            return self.storage
        at = self.address("namenode")
        return self.storage.model_copy(update={"namenode": f"hdfs://{at}:9000", "webhdfs": (f"http://{at}:9870",)})

    def rack_of(self, name: str) -> str:
        """The rack of node `name`; the head (the runner's own process) is in a rack of its own."""
        return "head" if name == "head" else self.node(name).rack


def load_cluster(path: Path) -> Cluster:
    """Read a cluster config. Raises SpecError. Relative paths of certificates and token start at the file's folder."""
    cluster = parse(Cluster, read_yaml(path), str(path))
    if cluster.kind != "existing":
        return cluster
    assert cluster.token_file is not None
    return cluster.model_copy(
        update={
            "tls": cluster.tls.below(path.parent) if cluster.tls else None,
            "token_file": absolute(cluster.token_file, path.parent),
        }
    )
