"""A placement of shards on nodes becomes the plan of a job: preprocess as placed, results beside it, then the gang. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from datalocal.catalog.model import Catalog
from datalocal.placement.arrays import from_catalog
from datalocal.placement.model import Plan, StagePlan
from datalocal.placement.online import run
from datalocal.placement.problem import Assigned, Problem, Reason, assigned
from datalocal.placement.rules import Rule
from datalocal.placement.scene import Input, Scene, outputs_of
from datalocal.spec.cluster import Cluster
from datalocal.spec.job import JobSpec, PolicyOptions

if TYPE_CHECKING:
    from datalocal.placement.family import Placing
    from datalocal.placement.policies import Policy

_DEALT = "dealt in turn; it holds no replica"


def by_placement(
    name: str,
    place: Placing,
    *,
    trains_near: bool = True,
    told: Callable[[PolicyOptions], Placing] | None = None,
) -> Policy:
    """A policy that decides before the run, within the makespan that it takes when nobody asks for one.

    `trains_near`: ranks get shards that they hold, balanced by rows; else shards are dealt to the storage nodes in turn.
    `told`: makes of the job's options what places in its stead.
    """

    def policy(job: JobSpec, catalog: Catalog, cluster: Cluster) -> Plan:
        scene = Scene.of(job, catalog, cluster)
        stages = []
        if job.preprocess is not None:
            problem = from_catalog(catalog, cluster)
            answer = (place if told is None else told(job.policy_options))(problem, None, job.seed)
            stages.append(_preprocess(scene, problem, answer, [Reason(code).text for code in answer.reason.tolist()]))
        return Plan(policy=name, stages=(*stages, *_train(scene, stages, near=trains_near)))

    policy.__doc__ = place.__doc__
    return policy


def by_rule(name: str, rule_of: Callable[[PolicyOptions], Rule], *, trains_near: bool = True) -> Policy:
    """A policy that decides during the run, by a rule that is part of its plan.

    The assignments of the plan are what a simulated run of the rule gives when every shard takes one second per core.
    """

    def policy(job: JobSpec, catalog: Catalog, cluster: Cluster) -> Plan:
        scene = Scene.of(job, catalog, cluster)
        stages = []
        if job.preprocess is not None:
            rule, problem = rule_of(job.policy_options), from_catalog(catalog, cluster)
            problem.least_makespan()  # refuses a cluster in which nobody works
            ran = run(rule, problem)
            answer = assigned(problem, ran.node, policy=name, makespan_s=ran.seconds, why=ran.why)
            reasons = [
                ran.words.get(shard, Reason(code).text) if code == Reason.WAITED else Reason(code).text
                for shard, code in enumerate(answer.reason.tolist())
            ]
            stages.append(_preprocess(scene, problem, answer, reasons, rule))
        return Plan(policy=name, stages=(*stages, *_train(scene, stages, near=trains_near)))

    return policy


def _preprocess(
    scene: Scene, problem: Problem, answer: Assigned, reasons: Sequence[str], rule: Rule | None = None
) -> StagePlan:
    names = [problem.node_names[number] for number in range(problem.nodes)]
    workers = [names[number] for number in answer.node.tolist()]
    outputs = scene.beside_the_input(workers)
    return scene.stage("preprocess", "dataset", workers, scene.holders, outputs, reasons, rule)


def _train(scene: Scene, before: Sequence[StagePlan], *, near: bool) -> list[StagePlan]:
    if scene.job.train is None:
        return []
    held = outputs_of(before[0]) if before else scene.holders
    reads: Input = "output" if before else "dataset"
    return [scene.train_near(held, reads) if near else scene.train(scene.dealt(), held, reads, _DEALT)]
