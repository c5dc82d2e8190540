"""How local a plan of a real catalog is, beside the best that any plan could be within the same time. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from datalocal.catalog.model import Catalog
from datalocal.estimate.bytes import shard_numbers
from datalocal.placement import flow
from datalocal.placement.arrays import from_catalog
from datalocal.placement.certificate import Certificate, certify, gap
from datalocal.placement.model import Plan, StagePlan
from datalocal.placement.problem import Assigned, Problem, Reason, assigned
from datalocal.spec.cluster import Cluster
from datalocal.units import format_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Locality:
    """The stage that reads the data set where it lies, as an assignment, with the certificate for its makespan."""

    stage: str
    problem: Problem
    answer: Assigned
    certificate: Certificate
    in_seconds: bool = False
    """Whether makespans are seconds; else they count the shards that a core works on one after the other."""

    @property
    def within(self) -> str:
        """The makespan in words."""
        if self.in_seconds and not self.of_ranks:
            return format_seconds(self.certificate.makespan_s)
        who = "rank" if self.of_ranks else "core"
        return f"the time that a {who} takes for {self.certificate.makespan_s:.4g} shards"

    @property
    def of_ranks(self) -> bool:
        """Whether every node is one rank of a gang: makespans then count the shards of a rank."""
        return self.stage == "train"

    @property
    def local_share(self) -> float:
        """Share of the shards that a node reads from its own disk."""
        return self.answer.local / max(self.problem.shards, 1)

    @property
    def gap_shards(self) -> int:
        """Shards that are not local although, for all that the bound says, they could be."""
        return gap(self.problem, self.certificate, self.answer).shards


class Localities:
    """The localities of several plans of one catalog; what they share is made once."""

    def __init__(
        self, catalog: Catalog, cluster: Cluster, *, shards_per_second: Mapping[str, float] | float = 1.0
    ) -> None:
        """`shards_per_second`: of one core, by node or for all; makespans count in its unit."""
        self._problem = from_catalog(
            catalog, cluster, shards_per_second=shards_per_second, roles=("storage", "compute", "array")
        )
        self._in_seconds = isinstance(shards_per_second, Mapping)
        self._number = {self._problem.node_names[i]: i for i in range(self._problem.nodes)}
        self._catalog = catalog
        self._certificates: dict[tuple[str, float], Certificate] = {}

    def of(self, plan: Plan) -> Locality:
        """The plan's first stage with all shards reads the data set; also an array that is loaded counts as who works then."""
        stage = next(each for each in plan.stages if len(each.assignments) == len(self._catalog))
        problem = self._problem if stage.kind != "train" else _a_rank_each(self._problem)
        made = stage.assignments
        node = np.empty(problem.shards, dtype=np.int32)
        node[shard_numbers(made, self._catalog)] = np.array([self._number[name] for name in made.names])[made.node]
        makespan_s = problem.makespan(node)
        answer = assigned(problem, node, policy=plan.policy, makespan_s=makespan_s, why=Reason.NOT_ASKED)
        return Locality(
            stage=stage.name,
            problem=problem,
            answer=answer,
            certificate=self._certificate(stage, problem, answer),
            in_seconds=self._in_seconds,
        )

    def _certificate(self, stage: StagePlan, problem: Problem, answer: Assigned) -> Certificate:
        makespan_s = answer.makespan_s
        load = np.bincount(answer.node, minlength=problem.nodes)
        while (problem.capacity(makespan_s) < load).any():  # rounding of the quotient
            makespan_s = float(np.nextafter(makespan_s, np.inf))
        kind = "train" if stage.kind == "train" else "work"
        if (kind, makespan_s) not in self._certificates:
            self._certificates[kind, makespan_s] = certify(
                problem, flow.match(problem, problem.capacity(makespan_s)), makespan_s
            )
        return self._certificates[kind, makespan_s]


def _a_rank_each(problem: Problem) -> Problem:
    """In a gang every node makes the same number of steps, whatever its cores."""
    ones = np.ones(problem.nodes)
    return replace(problem, slots=ones.astype(np.int64), speed=ones)
