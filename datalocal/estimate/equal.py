"""The central arm with as much to compute with as the local one has. Pure."""

from __future__ import annotations

from dataclasses import replace

from datalocal.estimate.rates import NodeRates, Rates
from datalocal.placement.model import Plan


def at_equal_capacity(rates: Rates, local: Plan, central: Plan) -> Rates:
    """`rates` with the central plan's nodes as fast, all together, as the local plan's nodes are.

    What computes is scaled; disks and links stay as they are: that is what a central cluster of equal GPUs would have.
    """
    here, there = _workers(local), _workers(central)
    nodes = dict(rates.nodes)
    for name in there:
        node = nodes[name]
        nodes[name] = replace(
            node,
            preprocess_core_seconds=_scaled(rates, here, there, "preprocess_core_seconds", node),
            train_core_seconds=_scaled(rates, here, there, "train_core_seconds", node),
            validate_core_seconds=_scaled(rates, here, there, "validate_core_seconds", node),
        )
    return replace(rates, nodes=nodes)


def _workers(plan: Plan) -> set[str]:
    return {name for stage in plan.stages if stage.kind != "staging" for name in stage.nodes}


def _scaled(rates: Rates, here: set[str], there: set[str], what: str, node: NodeRates) -> float | None:
    def capacity(names: set[str]) -> float | None:
        total = 0.0
        for name in names:
            each = getattr(rates.nodes[name], what)
            if not each:
                return None
            slots = 1 if what != "preprocess_core_seconds" else rates.nodes[name].slots
            total += rates.nodes[name].cores * slots / each
        return total

    own: float | None = getattr(node, what)
    wanted, has = capacity(here), capacity(there)
    return own if own is None or wanted is None or has is None else own * has / wanted
