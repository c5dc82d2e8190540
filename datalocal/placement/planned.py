"""A placement of shards on nodes becomes the plan of a job: preprocess as placed, results beside it, then the gang. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from datalocal.placement.model import Plan, StagePlan
from datalocal.placement.online import run
from datalocal.placement.policies import Policy
from datalocal.placement.problem import Assigned, Reason, assigned
from datalocal.placement.rules import Rule
from datalocal.placement.scene import Input, Reasons, Scene, outputs_of
from datalocal.spec.job import PolicyOptions

if TYPE_CHECKING:
    from datalocal.placement.family import Placing

_DEALT = "dealt in turn; it holds no replica"
_TEXTS = tuple(reason.text for reason in Reason)


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

    @Policy
    def policy(scene: Scene) -> Plan:
        job, stages = scene.job, []
        if job.preprocess is not None:
            answer = (place if told is None else told(job.policy_options))(scene.problem, None, job.seed)
            stages.append(_preprocess(scene, answer, Reasons(code=answer.reason, texts=_TEXTS)))
        return Plan(policy=name, stages=(*stages, *_train(scene, stages, near=trains_near)))

    return policy


def by_rule(name: str, rule_of: Callable[[PolicyOptions], Rule], *, trains_near: bool = True) -> Policy:
    """A policy that decides during the run, by a rule that is part of its plan.

    The assignments of the plan are what a simulated run of the rule gives when every shard takes one second per core.
    """

    @Policy
    def policy(scene: Scene) -> Plan:
        stages = []
        if scene.job.preprocess is not None:
            rule, problem = rule_of(scene.job.policy_options), scene.problem
            problem.least_makespan()  # refuses a cluster in which nobody works
            ran = run(rule, problem)
            answer = assigned(problem, ran.node, policy=name, makespan_s=ran.seconds, why=ran.why)
            stages.append(_preprocess(scene, answer, _in_words(answer, ran.words), rule))
        return Plan(policy=name, stages=(*stages, *_train(scene, stages, near=trains_near)))

    return policy


def _in_words(answer: Assigned, words: Mapping[int, str]) -> Reasons:
    """The rule's own `words` for those that it let wait, by shard."""
    code = answer.reason.astype(np.int32)
    texts = {text: place for place, text in enumerate(_TEXTS)}
    for shard in np.flatnonzero(code == Reason.WAITED).tolist():
        if shard in words:
            code[shard] = texts.setdefault(words[shard], len(texts))
    return Reasons(code=code, texts=tuple(texts))


def _preprocess(scene: Scene, answer: Assigned, reasons: Reasons, rule: Rule | None = None) -> StagePlan:
    outputs = scene.beside_the_input(answer.node)
    return scene.stage("preprocess", "dataset", answer.node, scene.holders, outputs, reasons, rule)


def _train(scene: Scene, before: Sequence[StagePlan], *, near: bool) -> list[StagePlan]:
    if scene.job.train is None:
        return []
    held = outputs_of(before[0]) if before else scene.holders
    reads: Input = "output" if before else "dataset"
    return [scene.train_near(held, reads) if near else scene.train(scene.dealt(), held, reads, _DEALT)]
