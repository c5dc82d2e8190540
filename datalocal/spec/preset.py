"""`cluster-configs/presets/*.yaml`: clusters that need not exist, for `simulate`, with where their figures come from."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from datalocal.spec.base import Strict, parse, read_yaml
from datalocal.spec.cluster import Name, PowerProfile


class NodeGroup(Strict):
    """Nodes that are alike."""

    name: Name
    count: int = Field(ge=1)
    rack_nodes: int = Field(default=40, ge=1, description="nodes in a rack")
    role: Literal["storage", "compute", "array"] = "storage"
    slots: int = Field(default=1, ge=0, description="GPUs (or tasks) at a time; 0 for nodes that only hold data")
    images_per_second: float = Field(default=1.0, gt=0, description="of one slot")
    link_gbit: float = Field(gt=0, description="each way")
    disk_mbyte: float | None = Field(default=None, gt=0, description="MB/s of all its disks together")
    power: PowerProfile | None = None


class Preset(Strict):
    """A cluster and the data set on it."""

    name: Name
    description: str
    groups: tuple[NodeGroup, ...] = Field(min_length=1)
    uplink_gbit: float | None = Field(default=None, gt=0, description="of a rack, each way; default: no limit")
    shards: int = Field(default=100_000, ge=1)
    shard_bytes: int = Field(default=128 * 1024 * 1024, ge=1)
    shard_rows: int = Field(default=1170, ge=1, description="images in a shard")
    replication: int = Field(default=3, ge=1)

    @model_validator(mode="after")
    def _holds(self) -> Preset:
        holders = sum(group.count for group in self.groups if group.role != "compute")
        if holders < self.replication:
            raise ValueError(f"{self.replication} replicas do not fit on {holders} nodes that hold data")
        if not any(group.slots for group in self.groups):
            raise ValueError("no group has slots: nobody works")
        return self


def load_preset(path: Path) -> Preset:
    """Read a preset. Raises SpecError."""
    return parse(Preset, read_yaml(path), str(path))
