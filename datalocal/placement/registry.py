"""All policies by the names users know: what `submit` and `plan` run, and what of it `simulate` can place. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType

from datalocal.placement import policies
from datalocal.placement.family import FAMILY, optimal_makespan
from datalocal.placement.names import look_up
from datalocal.placement.planned import by_placement, by_rule
from datalocal.placement.policies import Policy
from datalocal.placement.rules import DaskDefault, DaskReplicas, SparkDelay, YarnDelay

POLICIES: Mapping[str, Policy] = MappingProxyType(
    {
        "data-local": policies.data_local,
        "random": policies.random,
        "round-robin": by_placement("round-robin", FAMILY["round-robin"], trains_near=False),
        "dask-default": by_rule("dask-default", lambda _: DaskDefault(), trains_near=False),
        "dask-replicas": by_rule("dask-replicas", lambda _: DaskReplicas()),
        "spark-delay": by_rule("spark-delay", lambda told: SparkDelay(wait_s=told.spark_wait_seconds)),
        "yarn-delay": by_rule("yarn-delay", lambda told: YarnDelay(misses=told.yarn_missed_opportunities)),
        **{
            name: by_placement(name, FAMILY[name])
            for name in ("hdfs-greedy", "rack-aware", "quincy", "optimal-bytes", "energy")
        },
        "optimal-makespan": by_placement(
            "optimal-makespan",
            FAMILY["optimal-makespan"],
            told=lambda told: partial(optimal_makespan, epsilon=told.makespan_slack),
        ),
        "reduce-then-ship": policies.reduce_then_ship,
        "central-nas": policies.central_nas,
        "central-cached": policies.central_cached,
        "central-staged": policies.central_staged,
        "san": policies.san,
    }
)
"""One signature: (job, catalog, cluster of the nodes that are up) -> Plan. Those in `FAMILY` also place arrays."""


def policy_named(name: str) -> Policy:
    """The policy called `name`. Raises PlacementError with the names that are near."""
    return look_up(name, POLICIES)
