"""`cluster-configs/*.yaml`: the nodes, their racks and roles, and what is declared about their power."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, field_validator, model_validator

from datalocal.spec.base import Strict, parse, read_yaml

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
Role = Literal["storage", "compute"]


class PowerProfile(Strict):
    """Watts of one physical host as its owner declares them; figures derived from it have the origin `assumed`."""

    idle_watts: float = Field(ge=0)
    busy_watts: float = Field(ge=0)

    @model_validator(mode="after")
    def _ordered(self) -> PowerProfile:
        if self.busy_watts < self.idle_watts:
            raise ValueError(f"busy_watts ({self.busy_watts}) is below idle_watts ({self.idle_watts})")
        return self


class Node(Strict):
    """One node. `storage` nodes hold shards and work; `compute` nodes are the central side."""

    name: Name
    rack: Name
    role: Role = "storage"
    cores: int = Field(default=1, ge=1)
    slots: int = Field(default=1, ge=1, description="preprocess tasks at a time; each uses all `cores`")
    disk_bytes: int | None = Field(default=None, ge=1, description="capacity of the node's folder; default: its disk")
    gpus: Literal["auto", "none"] = "auto"


class Cluster(Strict):
    """A cluster as a value: what placement and accounting need to know of it."""

    name: Name
    kind: Literal["embedded"] = "embedded"
    replication: int = Field(default=3, ge=1)
    block_bytes: int = Field(default=128 * 1024 * 1024, ge=64 * 1024, description="a shard is at most one block")
    free_disk_floor_bytes: int = Field(default=500_000_000, ge=0, description="free space that writes leave on a disk")
    shared_host: bool = Field(default=True, description="all nodes are processes of one physical host")
    power: PowerProfile | None = None
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
        return nodes

    @model_validator(mode="after")
    def _replicable(self) -> Cluster:
        storage = len(self.storage_nodes)
        if not storage:
            raise ValueError("no node has the role `storage`")
        if self.replication > storage:
            raise ValueError(f"replication {self.replication} needs as many storage nodes, there are {storage}")
        return self

    @property
    def storage_nodes(self) -> tuple[Node, ...]:
        """The nodes that hold shards, in file order."""
        return tuple(node for node in self.nodes if node.role == "storage")

    @property
    def compute_nodes(self) -> tuple[Node, ...]:
        """The central side, in file order."""
        return tuple(node for node in self.nodes if node.role == "compute")

    def node(self, name: str) -> Node:
        """The node called `name`. Raises KeyError."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(name)

    def rack_of(self, name: str) -> str:
        """The rack of node `name`; the head (the runner's own process) is in a rack of its own."""
        return "head" if name == "head" else self.node(name).rack


def load_cluster(path: Path) -> Cluster:
    """Read a cluster config. Raises SpecError."""
    return parse(Cluster, read_yaml(path), str(path))
