"""How the independent tasks of a stage find their nodes: as the plan says, or by its rule, on what is up now."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from datalocal.catalog.model import Catalog
from datalocal.execution.arm import Arm
from datalocal.execution.dispatch import Dispatch, Dispatching
from datalocal.execution.online import OnlineDispatch, Put
from datalocal.placement.arrays import from_catalog
from datalocal.placement.model import Assignment, StagePlan
from datalocal.placement.repair import Putting, replace
from datalocal.placement.replicas import no_replica


def dispatch_of(arm: Arm, stage: StagePlan, todo: Sequence[Assignment], catalog: Catalog) -> Dispatching:
    """As planned, or by the plan's rule, from what is up now."""
    if stage.rule is None:
        return as_planned(arm, stage, todo, catalog)
    known = set(catalog.shards)
    lost = [assignment.shard for assignment in todo if assignment.shard not in known]
    alive = set(arm.executor.facts())
    if lost:
        raise no_replica(f"{catalog.dataset}/{lost[0]}", len(lost), len(stage.assignments), len(alive))
    roles = {arm.cluster.node(name).role for name in stage.nodes}
    living = arm.cluster.model_copy(update={"nodes": tuple(node for node in arm.cluster.nodes if node.name in alive)})
    return OnlineDispatch(
        rule=stage.rule,
        problem=from_catalog(catalog, living, roles=roles),
        shards=[assignment.shard for assignment in todo],
        putting=lambda: _putting(arm, stage, catalog),
        max_attempts=arm.job.max_attempts,
    )


def _putting(arm: Arm, stage: StagePlan, catalog: Catalog) -> Put:
    """Assignments with the replicas as they are now."""
    alive = set(arm.executor.facts())
    dead = [node.name for node in arm.cluster.nodes if node.name not in alive]
    return Putting(stage, catalog.without_nodes(dead), arm.cluster, alive).on


def as_planned(arm: Arm, stage: StagePlan, todo: Sequence[Assignment], catalog: Catalog) -> Dispatch:
    """Every shard on the node that was chosen for it, and what to do when that one fails."""
    alive = arm.executor.facts()
    return Dispatch(
        assignments=todo,
        slots={node.name: node.slots for node in arm.cluster.nodes if node.name in alive},
        max_attempts=arm.job.max_attempts,
        replace=_replacer(arm, stage, catalog),
    )


def _replacer(
    arm: Arm, stage: StagePlan, catalog: Catalog
) -> Callable[[Sequence[str], Collection[str]], Sequence[Assignment]]:
    def place_again(shards: Sequence[str], usable: Collection[str]) -> Sequence[Assignment]:
        alive = set(arm.executor.facts())
        dead = [node.name for node in arm.cluster.nodes if node.name not in alive]
        return replace(stage, shards, catalog.without_nodes(dead), arm.cluster, set(usable) & alive)

    return place_again
