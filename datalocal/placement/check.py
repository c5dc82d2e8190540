"""What every plan must hold, whoever made it: the runner checks each plan before it executes it. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from datalocal.catalog.model import Catalog
from datalocal.errors import PlacementError
from datalocal.placement.model import Assignment, Assignments, Plan, StagePlan
from datalocal.placement.problem import Ints, Mask
from datalocal.placement.quota import label_mixes
from datalocal.placement.replicas import Holders, either, live_holders
from datalocal.spec.cluster import Cluster
from datalocal.spec.job import JobSpec


def check(plan: Plan, job: JobSpec, catalog: Catalog, cluster: Cluster) -> None:
    """Refuse a plan that does not do the job: PlacementError names policy, stage, shard and what is wrong.

    Every shard once per stage (of staging: those that are copied), on nodes that are up; sources hold the shard (or what the
    stage before wrote or copied); results go to distinct nodes; a reason is given exactly where the work is not local;
    labels are known where the job has a class quota.
    """
    held = {"dataset": live_holders(catalog, cluster)}
    if job.train is not None and job.train.class_quota:
        label_mixes(catalog)  # refuses a catalog without labels
    wanted = [kind for kind, part in (("preprocess", job.preprocess), ("train", job.train)) if part is not None]
    found = [stage.kind for stage in plan.stages if stage.kind != "staging"]
    if found != wanted:
        raise _wrong(plan, "", f"the job has the stages {', '.join(wanted)}, the plan {', '.join(found) or 'none'}")
    if len({stage.name for stage in plan.stages}) != len(plan.stages):
        raise _wrong(plan, "", "two stages have the same name")
    names = held["dataset"].names
    for stage in plan.stages:
        if stage.input not in held:
            raise _wrong(plan, stage.name, f"it reads {stage.input!r}, which no stage before it makes")
        shard = _check_shards(plan, stage, catalog)
        made = stage.assignments
        number = {name: place for place, name in enumerate(names)}
        place = np.array([number.get(name, -1) for name in made.names], dtype=np.int64)
        suspects = np.flatnonzero(_suspicious(stage, made, shard, held[stage.input], place))
        if suspects.size:
            assignment = made[int(suspects[0])]
            owned = held[stage.input]
            first, last = owned.offsets[shard[suspects[0]]], owned.offsets[shard[suspects[0]] + 1]
            holders = [owned.names[node] for node in owned.nodes[first:last].tolist()]
            problem = _problem(stage, assignment, holders, set(names))
            raise _wrong(plan, stage.name, f"{assignment.shard} on {assignment.node}: {problem}")
        if stage.kind != "train":
            owner = np.repeat(shard, np.diff(made.output_offsets))
            order = np.argsort(owner, kind="stable")
            result = Holders.ordered(names, owner[order], place[made.outputs[order]], len(catalog))
            held["staged" if stage.kind == "staging" else "output"] = result
            if stage.kind == "staging":
                held["cached"] = either(result, held["dataset"], result.counts > 0)


def _check_shards(plan: Plan, stage: StagePlan, catalog: Catalog) -> Ints:
    """[N] the number in the catalog of each assignment's shard. Raises where not every shard is assigned once."""
    shards = stage.assignments.shards
    if shards == catalog.shards:
        return np.arange(len(shards))
    counts = Counter(shards)
    twice = sorted(shard for shard, count in counts.items() if count > 1)
    missing = [shard for shard in catalog.shards if shard not in counts]
    known = {shard: place for place, shard in enumerate(catalog.shards)}
    unknown = sorted(shard for shard in counts if shard not in known)
    missing = [] if stage.kind == "staging" else missing  # who reads `staged` then finds a shard that nobody holds
    for wrong, what in ((twice, "assigned twice"), (missing, "not assigned"), (unknown, "not in the data set")):
        if wrong:
            raise _wrong(plan, stage.name, f"{what}: {wrong[0]} ({len(wrong)} of {len(catalog)} shards)")
    return np.array([known[shard] for shard in shards], dtype=np.int64)


def _suspicious(stage: StagePlan, made: Assignments, shard: Ints, held: Holders, place: npt.NDArray[np.int64]) -> Mask:
    """[N] whether `_problem` finds something; `place` of the assignments' node numbers among those that are up, -1 for others."""
    count = len(made)
    sources, outputs = np.diff(made.source_offsets), np.diff(made.output_offsets)
    of_source, of_output = np.repeat(np.arange(count), sources), np.repeat(np.arange(count), outputs)
    wide = len(held.names) + 1
    held_pairs = held.owner * wide + held.nodes + 1
    if not (held_pairs[1:] > held_pairs[:-1]).all():  # results stand in the order in which they are preferred
        held_pairs = np.sort(held_pairs)
    source_pairs = shard[of_source] * wide + place[made.sources] + 1
    found = np.minimum(np.searchsorted(held_pairs, source_pairs), max(len(held_pairs) - 1, 0))
    strangers = held_pairs[found] != source_pairs
    output_pairs = np.sort(of_output * wide + place[made.outputs] + 1)
    bad = (place[made.node] < 0) | (sources == 0)
    bad[of_source[strangers]] = True
    own = np.zeros(count, dtype=np.bool_)
    own[of_source[made.sources == made.node[of_source]]] = True
    local = made.local
    bad |= own & ~local
    bad[of_output[place[made.outputs] < 0]] = True
    bad[output_pairs[1:][output_pairs[1:] == output_pairs[:-1]] // wide] = True
    bad |= (outputs > 0) == (stage.kind == "train")
    given = np.array([bool(text) for text in made.reasons])[made.reason]
    return np.asarray(bad | (given == local))


def _problem(stage: StagePlan, assignment: Assignment, held: Sequence[str], nodes: set[str]) -> str:
    """What is wrong with one assignment, of whose shard `held` are the holders."""
    if assignment.node not in nodes:
        return "no such node is up"
    if not assignment.sources:
        return "it has no source to read from"
    strangers = set(assignment.sources) - set(held)
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
    return "it is local and has a reason" if assignment.local else "it is not local and has no reason"


def _wrong(plan: Plan, stage: str, problem: str) -> PlacementError:
    where = f"{plan.policy}, {stage}" if stage else plan.policy
    return PlacementError(
        f"the plan of {where} is not valid: {problem}", "this is a bug of the policy; please report it"
    )
