"""The central arm with as many GPUs as the local one has, or for the same money or power. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal, TypeAlias

from datalocal.estimate.rates import NodeRates, Rates
from datalocal.placement.model import Plan
from datalocal.spec.cluster import Cluster

Measure: TypeAlias = Literal["GPUs", "money", "power"]
MEASURES: tuple[Measure, ...] = ("GPUs", "money", "power")


def at_equal(measure: Measure, rates: Rates, local: Plan, central: Plan, cluster: Cluster) -> Rates | None:
    """`rates` with the central plan's nodes as fast, all together, as equality in `measure` makes them.

    GPUs: as fast as the local plan's nodes together. Money, power: as many of the central nodes as are paid for with the
    local nodes' price per hour, or fed with their busy watts; a fraction of a node counts. What computes is scaled; disks and
    links stay as they are. None where a price or the watts are not declared.
    """
    here, there = _workers(local), _workers(central)
    if measure == "GPUs":
        return _faster(rates, there, lambda what: _ratio(_capacity(rates, here, what), _capacity(rates, there, what)))
    worth = _price if measure == "money" else _watts
    ratio = _ratio(worth(cluster, rates, here), worth(cluster, rates, there))
    return None if ratio is None else _faster(rates, there, lambda _: ratio)


def _workers(plan: Plan) -> set[str]:
    return {name for stage in plan.stages if stage.kind != "staging" for name in stage.nodes}


def _ratio(here: float | None, there: float | None) -> float | None:
    return None if here is None or not there else here / there


def _price(cluster: Cluster, rates: Rates, names: set[str]) -> float | None:
    prices = [node.price_per_hour for node in cluster.nodes if node.name in names]
    known = [price for price in prices if price is not None]
    return sum(known) if len(known) == len(prices) else None


def _watts(cluster: Cluster, rates: Rates, names: set[str]) -> float | None:
    """The profile is that of a host, and the same for all of them."""
    return None if cluster.power is None else cluster.power.busy_watts * len({rates.nodes[name].host for name in names})


def _faster(rates: Rates, names: set[str], by: Callable[[str], float | None]) -> Rates:
    nodes = dict(rates.nodes)
    for name in names:
        node = nodes[name]
        nodes[name] = replace(
            node,
            preprocess_core_seconds=_scaled(node, "preprocess_core_seconds", by),
            train_core_seconds=_scaled(node, "train_core_seconds", by),
            validate_core_seconds=_scaled(node, "validate_core_seconds", by),
        )
    return replace(rates, nodes=nodes)


def _scaled(node: NodeRates, what: str, by: Callable[[str], float | None]) -> float | None:
    own: float | None = getattr(node, what)
    factor = by(what)
    return own if own is None or not factor else own / factor


def _capacity(rates: Rates, names: set[str], what: str) -> float | None:
    """Images per second of all of them together; None where that is not known."""
    total = 0.0
    for name in names:
        each = getattr(rates.nodes[name], what)
        if not each:
            return None
        slots = 1 if what != "preprocess_core_seconds" else rates.nodes[name].slots
        total += rates.nodes[name].cores * slots / each
    return total
