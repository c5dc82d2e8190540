"""GPUs as slots: which ranks run where. One physical GPU is one slot, however many nodes share its host. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from datalocal.errors import PlacementError


@dataclass(frozen=True, slots=True, kw_only=True)
class Devices:
    """What the ranks of a gang run on: per node the UUIDs of its GPUs, or one CPU rank."""

    device: Literal["cpu", "cuda"]
    gpus: Mapping[str, tuple[str, ...]]
    reason: str

    def ranks_on(self, node: str) -> int:
        """Ranks on this node: one per GPU, or one on the CPU."""
        return len(self.gpus[node]) if self.device == "cuda" else 1


def share_gpus(nodes: Sequence[str], seen: Mapping[str, Sequence[str]]) -> dict[str, tuple[str, ...]]:
    """Give every physical GPU to one of the nodes that see it: to the one that has the fewest so far.

    `seen`: node -> UUIDs that NVML lists there. Deterministic; each UUID comes out at most once.
    """
    given: dict[str, list[str]] = {node: [] for node in sorted(nodes)}
    for uuid in sorted({uuid for node in nodes for uuid in seen.get(node, ())}):
        holders = [node for node in given if uuid in seen.get(node, ())]
        given[min(holders, key=lambda node: (len(given[node]), node))].append(uuid)
    return {node: tuple(uuids) for node, uuids in given.items()}


def choose_devices(
    wanted: Literal["auto", "cpu", "cuda"], gpus: int | None, nodes: Sequence[str], seen: Mapping[str, Sequence[str]]
) -> Devices:
    """What a gang on `nodes` runs on. Raises PlacementError with the numbers when the job asks for more than there is."""
    shared = share_gpus(nodes, seen)
    there = sum(len(uuids) for uuids in shared.values())
    without = sorted(node for node, uuids in shared.items() if not uuids)
    if wanted == "cpu":
        return Devices(device="cpu", gpus={}, reason="the job asks for the CPU")
    if gpus is not None and gpus > there:
        raise PlacementError(
            f"the job asks for {gpus} GPUs, the {len(nodes)} planned nodes have {there}"
            + (f" (none on {', '.join(without)})" if without else ""),
            "ask for fewer (`train.gpus`), use `device: auto`, or another policy: "
            "a physical GPU counts once for all nodes of its host",
        )
    if wanted == "cuda" and without:
        raise PlacementError(
            f"`device: cuda` needs a GPU on each of the {len(nodes)} planned nodes; "
            f"there are {there}, none on {', '.join(without)}",
            "use `device: auto` or `cpu`, or a policy that trains on nodes with GPUs",
        )
    if without:
        missing = (
            "no GPU is there"
            if not there
            else f"only {there} GPUs for {len(nodes)} nodes (none on {', '.join(without)})"
        )
        return Devices(device="cpu", gpus={}, reason=f"device auto: {missing}")
    if gpus is not None:
        shared = _first(shared, gpus)
    return Devices(device="cuda", gpus=shared, reason=f"{sum(map(len, shared.values()))} GPUs on {len(nodes)} nodes")


def _first(shared: Mapping[str, tuple[str, ...]], count: int) -> dict[str, tuple[str, ...]]:
    """`count` GPUs spread evenly over the nodes, at least one each."""
    taken = dict.fromkeys(shared, 0)
    for _ in range(max(count, len(shared))):
        open_nodes = [node for node in shared if taken[node] < len(shared[node])]
        if not open_nodes:
            break
        taken[min(open_nodes, key=lambda node: (taken[node], node))] += 1
    return {node: uuids[: taken[node]] for node, uuids in shared.items()}
