"""The dispatch rules of the policies that decide during the run, as values: they are part of a plan. Pure.

What a rule does is in `online`; here is what it is called and what it can be told.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias


@dataclass(frozen=True, slots=True, kw_only=True)
class DaskDefault:
    """Root tasks of dask: the next one, in order, to the worker with the fewest tasks per thread.

    distributed 2026.8.0, `SchedulerState.decide_worker_rootish_queuing_enabled`: "picks the least-busy worker out of the idle
    workers", replicas unseen; a worker is idle while it has less than ceil(saturation x threads) tasks
    (`distributed.scheduler.worker-saturation`). Stealing from that short queue at the very end of a stage is left out.
    """

    saturation: float = 1.1


@dataclass(frozen=True, slots=True, kw_only=True)
class DaskReplicas:
    """Tasks with `workers=[hosts of the replicas]`, strict: all sent at once, each to its least occupied holder; a holder with
    nothing left steals from the busiest one.

    distributed 2026.8.0, `decide_worker` (least occupancy / threads among valid workers) and `WorkStealing` (a thief must be
    one of the task's workers). A shard that no working node holds, on which dask would wait for ever, goes anywhere.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class SparkDelay:
    """Spark's delay scheduling: node-local only, after `wait_s` without progress rack-local too, after as much again anywhere.

    Spark 3.1 and later, `TaskSetManager.getAllowedLocalityLevel` and `TaskSchedulerImpl.resourceOffers`
    (`spark.locality.wait`, 3 s): the clock starts again when all free nodes found work, not with every task that
    starts (SPARK-18886). Zaharia et al., EuroSys 2010.
    """

    wait_s: float = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class YarnDelay:
    """YARN's CapacityScheduler: rack-local after more than `misses` scheduling opportunities without a local task, anywhere
    after more than `misses + rack_misses`.

    `RegularContainerAllocator.canAssign`; `misses` is `node-locality-delay` (None: the number of nodes that work, as Cloudera
    advises), `rack_misses` is `rack-locality-additional-delay` (None: as many again; YARN's own default, by pending
    containers, is left out). Local and rack-local assignments start the count again, others do not. An idle node is an
    opportunity with every heartbeat (`nodemanagers.heartbeat-interval-ms`, 1 s).
    """

    misses: int | None = None
    rack_misses: int | None = None
    heartbeat_s: float = 1.0


Rule: TypeAlias = DaskDefault | DaskReplicas | SparkDelay | YarnDelay
RULES: Mapping[str, type[Rule]] = {
    "dask-default": DaskDefault,
    "dask-replicas": DaskReplicas,
    "spark-delay": SparkDelay,
    "yarn-delay": YarnDelay,
}


def rule_to_json(rule: Rule) -> dict[str, Any]:
    """The rule's name and what it was told, as plain JSON values."""
    return {"name": next(name for name, kind in RULES.items() if isinstance(rule, kind)), **asdict(rule)}


def rule_from_json(content: Mapping[str, Any]) -> Rule:
    """The inverse of `rule_to_json`."""
    told = dict(content)
    return RULES[told.pop("name")](**told)
