"""Bytes of an arm: rows by stage, class, tier, source and destination, and the sums that are made of them. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from datalocal.placement.model import Tier
from datalocal.spec.cluster import Cluster

Event = Mapping[str, Any]
Row = dict[str, Any]

TIERS = {Tier.NODE_LOCAL: "node_local", Tier.RACK_LOCAL: "rack_local", Tier.OFF_RACK: "off_rack"}
CLASSES = ("input", "staging", "exchange", "gradients", "output", "checkpoint", "control")
ARRIVING = ("input", "staging")
"""Classes that bring a stage its input."""


def tier_between(cluster: Cluster, source: str, destination: str) -> Tier:
    """The tier of a transfer; a node that the cluster does not list is off every rack."""
    known = {node.name for node in cluster.nodes} | {"head"}
    if source not in known or destination not in known:
        return Tier.NODE_LOCAL if source == destination else Tier.OFF_RACK
    return Tier.between(cluster, source, destination)


def byte_rows(events: Iterable[Event], cluster: Cluster) -> list[Row]:
    """Every byte that anybody counted, also those of work that was done twice: it went over the wire twice."""
    total: Counter[tuple[str, str, str, str, str]] = Counter()
    for stage, row in counted(events):
        total[(stage, row["class"], row["source"], row["destination"], row["origin"])] += row["bytes"]
    return [
        {
            "stage": stage,
            "class": class_,
            "tier": TIERS[tier_between(cluster, source, destination)],
            "source": source,
            "destination": destination,
            "bytes": count,
            "origin": origin,
        }
        for (stage, class_, source, destination, origin), count in sorted(total.items())
    ]


def counted(events: Iterable[Event]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(stage, row) of every count that anybody told."""
    for event in events:
        match event["type"]:
            case "task":
                for row in event["record"]["bytes"]:
                    yield event["record"]["stage"], row
            case "rank":
                for row in event["bytes"]:
                    yield event["stage"], row
            case "bytes":
                for row in event["rows"]:
                    yield event["stage"], row


def headline(rows: Sequence[Row], records: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """What left a node, all classes: {off_node, off_rack, by_class, by_tier, output_replication, input, input_local}."""
    off = [row for row in rows if row["source"] != row["destination"]]
    classes = {class_: sum(row["bytes"] for row in off if row["class"] == class_) for class_ in CLASSES}
    tiers = {tier: sum(row["bytes"] for row in rows if row["tier"] == tier) for tier in TIERS.values()}
    reads = [row for row in rows if row["class"] in ("input", "exchange")]
    return {
        "off_node": sum(row["bytes"] for row in off),
        "off_rack": sum(row["bytes"] for row in off if row["tier"] == "off_rack"),
        "by_class": {class_: count for class_, count in classes.items() if count},
        "by_tier": tiers,
        "output_replication": sum(_replication(record) for record in records),
        "input": sum(row["bytes"] for row in reads),
        "input_local": sum(row["bytes"] for row in reads if row["source"] == row["destination"]),
    }


def _replication(record: Mapping[str, Any]) -> int:
    """Of a task's output, the bytes that left the node only to lie there a second time."""
    gone: int = sum(
        row["bytes"] for row in record["bytes"] if row["class"] == "output" and row["source"] != row["destination"]
    )
    copies = len(record["output_nodes"])
    if record["node"] in record["output_nodes"] or not copies:
        return gone
    return gone * (copies - 1) // copies


def farthest(cluster: Cluster, rows: Iterable[Mapping[str, Any]], reader: str) -> Tier:
    """The tier of the farthest byte of input that `reader` read; node-local when it read none."""
    return max(
        (
            tier_between(cluster, row["source"], row["destination"])
            for row in rows
            if row["class"] in ARRIVING and row["destination"] == reader and row["bytes"]
        ),
        default=Tier.NODE_LOCAL,
    )
