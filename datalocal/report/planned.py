"""Plans of one job side by side, as `plan` shows them and a run keeps them: one pure function from values to JSON values."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from datalocal.catalog.model import Catalog
from datalocal.errors import PlacementError
from datalocal.estimate.bytes import Estimate, Known, Places, estimate, exact_sums, shard_numbers
from datalocal.estimate.cost import Cost, cost, trains_on
from datalocal.estimate.crossover import Crossover, crossovers
from datalocal.estimate.equal import MEASURES, Measure, at_equal
from datalocal.estimate.locality import Localities, Locality
from datalocal.estimate.rates import Rates
from datalocal.placement.check import check
from datalocal.placement.model import Plan, StagePlan, Tier
from datalocal.placement.policies import Policy
from datalocal.placement.scene import Scene
from datalocal.report.advice import advice
from datalocal.report.labels import label_distance
from datalocal.report.proofs import proofs
from datalocal.report.verdict import choice_of
from datalocal.spec.cluster import Cluster
from datalocal.spec.job import JobSpec

SCHEMA = "datalocal.plan/1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighed:
    """One policy's plan and what it would take."""

    plan: Plan
    estimate: Estimate
    cost: Cost
    locality: Locality
    plan_seconds: float
    crossovers: tuple[Crossover, ...] = ()
    equal_seconds: Mapping[Measure, float] = field(default_factory=dict)
    """Of a central arm, with as many GPUs (or cores) as the local arm has, or for its money or power; what is known of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plans:
    """The plans of one job under several policies."""

    arms: tuple[Weighed, ...]
    refused: Mapping[str, str] = field(default_factory=dict)
    """Why a policy makes no plan of this job here."""
    rates: Rates | None = None
    shared_host: bool = False

    @property
    def verdict(self) -> dict[str, Any]:
        """{choice, sentence, because}"""
        return advice(
            [arm.estimate for arm in self.arms],
            next((arm.crossovers for arm in self.arms if arm.crossovers), ()),
            costs=[arm.cost for arm in self.arms],
            equal={arm.plan.policy: arm.equal_seconds for arm in self.arms},
            shared_host=self.shared_host,
            notes=self.rates.notes if self.rates is not None else (),
        )


def weigh(
    policies: Mapping[str, Policy],
    job: JobSpec,
    catalog: Catalog,
    living: Cluster,
    *,
    known: Known,
    rates: Rates | None,
    clock: Callable[[], float],
) -> Plans:
    """Plan `job` under each policy on the nodes that are up.

    `clock` gives seconds, for how long a plan takes; what policies share counts for the first of them.
    """
    each = _shards_per_second(catalog, rates)
    localities = Localities(catalog, living, shards_per_second=each if each is not None else 1.0)
    made: dict[str, tuple[Plan, float]] = {}
    refused: dict[str, str] = {}
    scene: Scene | None = None  # one for all of them: what several need to know is found out once
    for name, policy in policies.items():
        begin = clock()
        try:
            scene = scene or Scene.of(job, catalog, living)
            plan = policy.on(scene)
            check(plan, job, catalog, living)
        except PlacementError as error:
            refused[name] = str(error)
        else:
            made[name] = plan, clock() - begin
    local = next((plan for name, (plan, _) in made.items() if choice_of(name) == "local"), None)
    arms = []
    warm: set[str] = set()  # the arms of a run follow each other on the same nodes
    for name, (plan, seconds) in made.items():
        found = estimate(
            plan,
            job,
            catalog,
            living,
            gradient_bytes=known.gradient_bytes,
            checkpoint_bytes=known.checkpoint_bytes,
            output_share=known.output_share,
            training=known.training,
        )

        def priced(
            using: Rates | None, plan: Plan = plan, found: Estimate = found, warm: frozenset[str] = frozenset(warm)
        ) -> Cost:
            return cost(
                plan,
                job,
                catalog,
                found,
                using,
                power=living.power,
                gradient_bytes=known.gradient_bytes,
                warm=warm,
            )

        equal: dict[Measure, float] = {}
        if rates is not None and local is not None and choice_of(name) == "central" and not living.shared_host:
            for measure in MEASURES:
                using = at_equal(measure, rates, local, plan, living)
                took = None if using is None else priced(using).seconds
                if took is not None:
                    equal[measure] = took
        turning = crossovers(plan, job, catalog, found, known.gradient_bytes) if choice_of(name) == "local" else ()
        arms.append(
            Weighed(
                plan=plan,
                estimate=found,
                cost=priced(rates),
                locality=localities.of(plan),
                plan_seconds=seconds,
                crossovers=turning,
                equal_seconds=equal,
            )
        )
        warm |= trains_on(plan)
    return Plans(arms=tuple(arms), refused=refused, rates=rates, shared_host=living.shared_host)


def _shards_per_second(catalog: Catalog, rates: Rates | None) -> dict[str, float] | None:
    """Of one core, by node, for makespans in seconds; None where that is not known of all."""
    if rates is None or not catalog.total_rows:
        return None
    rows = catalog.total_rows / len(catalog)
    known = {name: node.preprocess_core_seconds or node.train_core_seconds for name, node in rates.nodes.items()}
    if any(not seconds for seconds in known.values()):
        return None
    return {name: 1 / (rows * seconds) for name, seconds in known.items() if seconds}


def to_json(plans: Plans, job: JobSpec, catalog: Catalog, cluster: Cluster) -> dict[str, Any]:
    """The contract `datalocal.plan/1`, and what else is known."""
    return {
        "schema": SCHEMA,
        "job": job.name,
        "dataset": job.dataset,
        "cluster": cluster.name,
        "arms": [_arm(each, job, catalog, cluster) for each in plans.arms],
        "refused": dict(plans.refused),
        "proofs": proofs({each.plan.policy: each.locality for each in plans.arms}),
        "verdict": plans.verdict,
        "rates": plans.rates.to_json() if plans.rates is not None else None,
    }


def _arm(weighed: Weighed, job: JobSpec, catalog: Catalog, cluster: Cluster) -> dict[str, Any]:
    locality, priced = weighed.locality, weighed.cost
    certificate = locality.certificate
    return {
        "policy": weighed.plan.policy,
        "origin": priced.origin,
        "seconds": priced.seconds,
        "seconds_reason": priced.reason,
        "seconds_by_stage": [stage.to_json() for stage in priced.stages],
        **{f"seconds_at_equal_{measure.lower()}": weighed.equal_seconds.get(measure) for measure in MEASURES},
        "bytes": byte_rows(weighed.estimate),
        "joules": list(priced.joules),
        "local_share": locality.local_share,
        "local_share_bound": certificate.local_share_bound,
        "gap": locality.gap_shards,
        "makespan": certificate.makespan_s,
        "certificate": certificate.to_json(locality.problem.node_names),
        "plan_seconds": weighed.plan_seconds,
        "stages": [_stage(stage, catalog, cluster) for stage in weighed.plan.stages],
        "estimate": weighed.estimate.to_json(),
        **label_distance(weighed.estimate, job, catalog),
        "crossovers": [each.to_json() for each in weighed.crossovers],
    }


def byte_rows(found: Estimate) -> list[dict[str, Any]]:
    """{class, tier, bytes} of all stages; null with a reason where part of it is not known."""
    sums: dict[tuple[str, Tier], int] = {}
    unknown: dict[tuple[str, Tier], str] = {}
    for flows in found.flows:
        for tier, size in flows.by_tier().items():
            key = (flows.class_, tier)
            sums[key] = sums.get(key, 0) + size
            if flows.bytes is None:
                unknown[key] = flows.reason
    return [
        {"class": class_, "tier": tier.name.lower(), "bytes": None, "reason": unknown[class_, tier]}
        if (class_, tier) in unknown
        else {"class": class_, "tier": tier.name.lower(), "bytes": size}
        for (class_, tier), size in sorted(sums.items())
    ]


def _stage(stage: StagePlan, catalog: Catalog, cluster: Cluster) -> dict[str, Any]:
    """Per node what is read at which distance, and why where it is not local."""
    made, places = stage.assignments, Places.of(cluster)
    number = places.numbers(made.names)
    shard = shard_numbers(made, catalog)
    tier = places.tiers(number[made.first_source], number[made.node])
    many = len(made.names)
    shards = np.bincount(made.node, minlength=many)
    rows = exact_sums(made.node, catalog.shard_rows[shard], many)
    sizes = catalog.shard_bytes[shard]
    by_tier = {each: exact_sums(made.node, np.where(tier == each, sizes, 0), many) for each in Tier}
    working = sorted(np.flatnonzero(shards).tolist(), key=lambda node: made.names[node])
    reasons = np.bincount(made.reason, minlength=len(made.reasons)).tolist()
    return {
        "name": stage.name,
        "kind": stage.kind,
        "input": stage.input,
        "nodes": [
            {
                "node": made.names[node],
                "shards": int(shards[node]),
                "rows": int(rows[node]),
                "bytes": {each.name.lower(): int(by_tier[each][node]) for each in Tier},
            }
            for node in working
        ],
        "not_local": [
            {"reason": reason, "shards": count}
            for reason, count in sorted(zip(made.reasons, reasons, strict=True))
            if reason and count
        ],
    }


def assignment_columns(plans: Sequence[Plan]) -> dict[str, list[str]]:
    """Policy, stage, shard and node of every task, as columns."""
    columns: dict[str, list[str]] = {"policy": [], "stage": [], "shard": [], "node": []}
    for plan in plans:
        for stage in plan.stages:
            made = stage.assignments
            columns["policy"] += [plan.policy] * len(made)
            columns["stage"] += [stage.name] * len(made)
            columns["shard"] += made.shards
            columns["node"] += [made.names[node] for node in made.node.tolist()]
    return columns
