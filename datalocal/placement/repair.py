"""Where the work of a lost or failing node goes. Pure."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace as changed

from datalocal.catalog.model import Catalog
from datalocal.errors import PlacementError
from datalocal.placement import gangs
from datalocal.placement.arrays import from_catalog
from datalocal.placement.model import Assignment, StagePlan
from datalocal.placement.replicas import Readers, no_replica
from datalocal.placement.writers import Writers
from datalocal.spec.cluster import Cluster
from datalocal.spec.job import GangChoice


def current(
    stage: StagePlan, catalog: Catalog, cluster: Cluster, alive: Collection[str], gang: GangChoice | None = None
) -> list[Assignment]:
    """The stage's assignments with the replicas as they are now; what a lost node had goes to another.

    `catalog` is what the stage reads, as it was listed. With `gang`, that other is one of the stage's nodes that are left; if
    none is, a gang is chosen anew. Raises PlacementError as `replace` does.
    """
    dead = [node.name for node in cluster.nodes if node.name not in alive]
    living = catalog.without_nodes(dead)
    planned = {assignment.shard: assignment for assignment in stage.assignments}
    kept, orphans = [], []
    for number, key in enumerate(living.shards):
        assignment = planned.get(key)
        holders = living.replicas(number)
        elsewhere = assignment is not None and not assignment.reason and holders and assignment.node not in holders
        if assignment is None or assignment.node not in alive or elsewhere:
            orphans.append(key)
            continue
        sources = (
            (assignment.node, *(name for name in holders if name != assignment.node))
            if assignment.node in holders
            else tuple(name for name in assignment.sources if name in holders) or holders
        )
        reason = "" if assignment.node in holders else assignment.reason or "its replica there is gone"
        kept.append(changed(assignment, sources=sources, reason=reason))
    if orphans:
        usable = set(alive) if gang is None else _gang_left(stage, living, cluster, alive, gang)
        kept += replace(stage, orphans, living, cluster, usable)
    return sorted(kept, key=lambda assignment: assignment.shard)


def _gang_left(
    stage: StagePlan, living: Catalog, cluster: Cluster, alive: Collection[str], gang: GangChoice
) -> set[str]:
    left = set(alive).intersection(stage.nodes)
    beside_the_data = any(cluster.node(name).role == "storage" for name in stage.nodes)
    if left or not beside_the_data:
        return left or set(alive)
    up = cluster.model_copy(update={"nodes": tuple(node for node in cluster.nodes if node.name in alive)})
    problem = from_catalog(living, up)
    return {problem.node_names[number] for number in gangs.chosen(problem, gang)}


def replace(
    stage: StagePlan, shards: Sequence[str], catalog: Catalog, cluster: Cluster, alive: Collection[str]
) -> tuple[Assignment, ...]:
    """New assignments for `shards` on `alive` nodes of the roles that work in this stage, in the order of `shards`.

    `catalog` is what the stage reads, with the replicas that can be read now. A replica holder is preferred, then the node
    with the fewest rows; results go to as many nodes as before, where there still are as many. Raises PlacementError with
    the numbers when a shard has no replica left, or no node may take it.
    """
    repair = _Repair(stage, frozenset(shards), catalog, cluster, frozenset(alive))
    return tuple(repair.place(shard) for shard in shards)


class Putting:
    """Assignments of a stage whose nodes somebody else chooses, one at a time: from whom to read, and where results go."""

    def __init__(self, stage: StagePlan, catalog: Catalog, cluster: Cluster, alive: Collection[str]) -> None:
        """`catalog` is what the stage reads, with the replicas that can be read now."""
        everything = frozenset(assignment.shard for assignment in stage.assignments)
        self._repair = _Repair(stage, everything, catalog, cluster, frozenset(alive))

    def on(self, node: str, shard: str, reason: str) -> Assignment:
        """`shard` on `node`; `reason` is for when that is not local. Raises PlacementError when nobody holds it."""
        return self._repair.put(shard, node, reason)


class _Repair:
    def __init__(
        self, stage: StagePlan, moved: frozenset[str], catalog: Catalog, cluster: Cluster, alive: frozenset[str]
    ) -> None:
        self.stage, self.catalog, self.cluster, self.alive = stage, catalog, cluster, alive
        self._before = {assignment.shard: assignment for assignment in stage.assignments}
        role = {node.name: node.role for node in cluster.nodes}
        self._workers = self._alive_with_roles_of({assignment.node for assignment in stage.assignments}, role)
        self._load = dict.fromkeys(self._workers, 0)
        written: dict[str, int] = {}
        for assignment in stage.assignments:
            if assignment.shard in moved:
                continue
            rows = self._rows(assignment.shard)
            if assignment.node in self._load:
                self._load[assignment.node] += rows
            for name in assignment.outputs:
                written[name] = written.get(name, 0) + rows
        self._outputs = self._alive_with_roles_of({name for a in stage.assignments for name in a.outputs}, role)
        rack = {node.name: node.rack for node in cluster.nodes}
        self._members = frozenset(rack)
        self._readers, self._writers = Readers(rack), Writers(rack, self._outputs, written)

    def _alive_with_roles_of(self, names: Collection[str], role: Mapping[str, str]) -> list[str]:
        roles = {role[name] for name in names if name in role}
        return sorted(name for name in self.alive if role.get(name) in roles)

    def _rows(self, shard: str) -> int:
        try:
            return int(self.catalog.shard_rows[self.catalog.index(shard)])
        except KeyError:  # finished in an earlier stage with nothing left to read, or never there
            return 0

    def place(self, shard: str) -> Assignment:
        """The new assignment of one shard; its rows count for the next one."""
        before = self._before.get(shard)
        holders = self._holders(shard)
        if not self._workers:
            raise PlacementError(
                f"{self.stage.name}: nobody can take {shard}: none of the {len(self.alive)} nodes that are up "
                f"({', '.join(sorted(self.alive)) or 'none'}) has the role of those that worked on it "
                f"({', '.join(self.stage.nodes)})",
                "bring one of them back (`datalocal cluster status`) and resume the run",
            )
        rows = self._rows(shard)
        able = [name for name in self._workers if name in holders] or self._workers
        node = min(able, key=lambda name: (self._load[name] / self._speed(name), name))
        self._load[node] += rows
        sources = self._readers.order(node, holders, rows)
        return Assignment(
            shard=shard,
            node=node,
            sources=sources,
            outputs=self._outputs_of(before, node, rows),
            reason="" if sources[0] == node else self._reason(before, sources[0]),
        )

    def put(self, shard: str, node: str, reason: str) -> Assignment:
        """The assignment of one shard to a node that somebody else chose: results go there, then beside the input."""
        holders, rows = self._holders(shard), self._rows(shard)
        sources = self._readers.order(node, holders, rows)
        return Assignment(
            shard=shard,
            node=node,
            sources=sources,
            outputs=self._outputs_of(self._before.get(shard), node, rows, holders),
            reason="" if sources[0] == node else reason,
        )

    def _holders(self, shard: str) -> tuple[str, ...]:
        try:
            found = self.catalog.replicas(self.catalog.index(shard))
        except KeyError:
            found = ()
        holders = tuple(sorted(self._members.intersection(found)))
        if holders:
            return holders
        if shard in self.catalog.copied:
            raise PlacementError(
                f"{self.stage.name}: the only copy of {shard} was kept on a node that is gone",
                "resume the run: what is not kept is read over the network",
            )
        if self.stage.input == "staged":
            raise PlacementError(
                f"{self.stage.name}: the only copy of {shard} was staged on a node that is gone",
                "resume the run when the node is back, or submit it again",
            )
        raise no_replica(f"{self.catalog.dataset}/{shard}", 1, len(self.catalog), len(self.alive))

    def _speed(self, name: str) -> float:
        node = self.cluster.node(name)
        return 1.0 if self.stage.kind == "train" else float(node.slots * node.cores)

    def _outputs_of(
        self, before: Assignment | None, node: str, rows: int, preferred: Sequence[str] = ()
    ) -> tuple[str, ...]:
        """As many as before: the executing node first where it kept a copy before, then `preferred` or those still up."""
        if self.stage.kind == "train":
            return ()
        if before is None:
            before = self.stage.assignments[0]
        keeps = before.node in before.outputs
        kept = [name for name in preferred or before.outputs if name in self.alive and name != node]
        chosen = self._writers.choose(node if keeps else None, kept, len(before.outputs), rows)
        if not chosen:
            raise PlacementError(
                f"{self.stage.name}: the result of {before.shard} has nowhere to go: of {', '.join(before.outputs)} "
                f"none is up ({len(self.alive)} nodes are)",
                "bring one of them back (`datalocal cluster status`) and resume the run",
            )
        return chosen

    def _reason(self, before: Assignment | None, source: str) -> str:
        """Why the new place is not local."""
        if before is not None and before.reason:
            return before.reason
        if before is not None and before.node not in self.alive:
            return f"{before.node} is lost, and no other node that works here holds a replica; {source}'s is used"
        return f"no node that works here and is up holds a replica; {source}'s is used"
