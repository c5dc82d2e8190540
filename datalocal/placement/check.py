"""What every plan must hold, whoever made it: the runner checks each plan before it executes it. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from datalocal.catalog.model import Catalog
from datalocal.errors import PlacementError
from datalocal.placement.model import Assignment, Plan, StagePlan
from datalocal.placement.quota import label_mixes
from datalocal.placement.replicas import live_holders
from datalocal.spec.cluster import Cluster
from datalocal.spec.job import JobSpec


def check(plan: Plan, job: JobSpec, catalog: Catalog, cluster: Cluster) -> None:
    """Refuse a plan that does not do the job: PlacementError names policy, stage, shard and what is wrong.

    Every shard once per stage, on nodes that are up; sources hold the shard (or what the stage before wrote or copied);
    results go to distinct nodes; a reason is given exactly where the work is not local; labels are known where the job has a
    class quota.
    """
    held: dict[str, Mapping[str, Sequence[str]]] = {
        "dataset": dict(zip(catalog.shards, live_holders(catalog, cluster), strict=True))
    }
    if job.train is not None and job.train.class_quota:
        label_mixes(catalog)  # refuses a catalog without labels
    wanted = [kind for kind, part in (("preprocess", job.preprocess), ("train", job.train)) if part is not None]
    found = [stage.kind for stage in plan.stages if stage.kind != "staging"]
    if found != wanted:
        raise _wrong(plan, "", f"the job has the stages {', '.join(wanted)}, the plan {', '.join(found) or 'none'}")
    if len({stage.name for stage in plan.stages}) != len(plan.stages):
        raise _wrong(plan, "", "two stages have the same name")
    nodes = {node.name for node in cluster.nodes}
    for stage in plan.stages:
        if stage.input not in held:
            raise _wrong(plan, stage.name, f"it reads {stage.input!r}, which no stage before it makes")
        _check_shards(plan, stage, catalog)
        for assignment in stage.assignments:
            problem = _problem(stage, assignment, held[stage.input], nodes)
            if problem:
                raise _wrong(plan, stage.name, f"{assignment.shard} on {assignment.node}: {problem}")
        if stage.kind != "train":
            made = "staged" if stage.kind == "staging" else "output"
            held[made] = {assignment.shard: assignment.outputs for assignment in stage.assignments}


def _check_shards(plan: Plan, stage: StagePlan, catalog: Catalog) -> None:
    counts = Counter(assignment.shard for assignment in stage.assignments)
    twice = sorted(shard for shard, count in counts.items() if count > 1)
    missing = [shard for shard in catalog.shards if shard not in counts]
    known = set(catalog.shards)
    unknown = sorted(shard for shard in counts if shard not in known)
    for shards, what in ((twice, "assigned twice"), (missing, "not assigned"), (unknown, "not in the data set")):
        if shards:
            raise _wrong(plan, stage.name, f"{what}: {shards[0]} ({len(shards)} of {len(catalog)} shards)")


def _problem(stage: StagePlan, assignment: Assignment, held: Mapping[str, Sequence[str]], nodes: set[str]) -> str:
    """What is wrong with one assignment, or nothing."""
    if assignment.node not in nodes:
        return "no such node is up"
    if not assignment.sources:
        return "it has no source to read from"
    strangers = set(assignment.sources) - set(held[assignment.shard])
    if strangers:
        return f"its sources {', '.join(sorted(strangers))} hold no replica"
    if assignment.node in assignment.sources and not assignment.local:
        return "it has a replica of its own and reads another one first"
    if set(assignment.outputs) - nodes:
        return f"its outputs {', '.join(sorted(set(assignment.outputs) - nodes))} are not up"
    if len(set(assignment.outputs)) != len(assignment.outputs):
        return f"it writes twice to one node: {', '.join(assignment.outputs)}"
    if bool(assignment.outputs) == (stage.kind == "train"):
        return "a train stage writes no shards" if assignment.outputs else "its result goes nowhere"
    if bool(assignment.reason) == assignment.local:
        return "it is local and has a reason" if assignment.local else "it is not local and has no reason"
    return ""


def _wrong(plan: Plan, stage: str, problem: str) -> PlacementError:
    where = f"{plan.policy}, {stage}" if stage else plan.policy
    return PlacementError(
        f"the plan of {where} is not valid: {problem}", "this is a bug of the policy; please report it"
    )
