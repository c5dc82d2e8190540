"""What counters that datalocal does not write say of the same windows as its own count, side by side. Pure.

Windows are contiguous: from the reading before to the reading at the stage's end, so nothing falls between two stages. What a
run moved before it broke off has no reading at its end, and is compared with nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from datalocal.report.traffic import counted
from datalocal.spec.cluster import Cluster
from datalocal.storage.hdfs.wire import CHUNK_BYTES, CRC_BYTES

HEADER_BYTES = 66
"""Of a TCP packet without payload, as interfaces count it: Ethernet 14, IPv4 20, TCP 20 and its time stamps 12."""

Event = Mapping[str, Any]
Row = dict[str, Any]
Reading = Mapping[str, Any]


def witness_rows(policy: str, events: Sequence[Event], cluster: Cluster) -> list[Row]:
    """Rows {arm, stage, node, witness, direction, bytes, expected_bytes, operations}, by stage and node.

    `reader` is our own count of HDFS reads by the reading node: payload, and in `expected_bytes` what a DataNode counts for
    them (widened to checksum chunks of 512 bytes with 4 bytes of CRC each). `socket` `read` is the kernel's count on the
    reader's own sockets to DataNodes, with packet headers. `clienttrace` `read` is all DataNodes' traces of
    reads by this node, `read_local` those of its own DataNode, `write` what its DataNode took in; `jmx` `served` and
    `served_remote` what its DataNode sent; `interface` `received` what came in over its network. `expected_bytes` is always
    the same thing by our own count. Of the interface it is the sum of `parts`: `data` (HDFS's with its checksums), `control`
    (what was counted as such, and what the kernel counted on dask's and the DataNode's own connections) and `headers` of the
    packets that came in. There, `operations` are the node's reads from anywhere, each with its questions to the NameNode.
    """
    return [
        row
        for stage, before, after, within in _windows(events)
        if stage
        for row in _window(policy, stage, before, after, [own for _, own in counted(within)], cluster)
    ]


def _windows(
    events: Iterable[Event],
) -> Iterator[tuple[str, Mapping[str, Reading], Mapping[str, Reading], list[Event]]]:
    """(stage, reading before, reading after, what was recorded between). Without a stage: broken off, or not yet at an end."""
    before: Mapping[str, Reading] | None = None
    within: list[Event] = []
    for event in events:
        if event["type"] != "witnesses":
            within.append(event)
            continue
        if before is not None:
            yield event["stage"], before, event["nodes"], within
        before, within = event["nodes"], []
    if before is not None:
        yield "", before, {}, within


def _window(
    policy: str,
    stage: str,
    before: Mapping[str, Reading],
    after: Mapping[str, Reading],
    own: Sequence[Mapping[str, Any]],
    cluster: Cluster,
) -> list[Row]:
    names = cluster.node_of_host
    reads, local, writes = _traced(before, after, names)
    rows: list[Row] = []

    def add(
        node: str, witness: str, direction: str, count: int | None, expected: int, operations: int, **more: Any
    ) -> None:
        if count is not None and (count or expected):
            rows.append(
                {
                    "arm": policy,
                    "stage": stage,
                    "node": node,
                    "witness": witness,
                    "direction": direction,
                    "bytes": count,
                    "expected_bytes": expected,
                    "operations": operations,
                    **more,
                }
            )

    for node in (each.name for each in cluster.nodes):
        read = [row for row in own if row["destination"] == node and _is_read(row)]
        sent = [row for row in own if row["source"] == node and _is_read(row)]
        written = [row for row in own if row["destination"] == node and _is_write(row)]
        at_home = [row for row in read if row["source"] == node]
        add(node, "reader", "read", sum(row["bytes"] for row in read), _expected(read), _operations(read))
        add(node, "socket", "read", sum(row.get("socket_bytes", 0) for row in read), _expected(read), _operations(read))
        if reads is not None:
            add(node, "clienttrace", "read", reads[node], _expected(read), _operations(read))
            add(node, "clienttrace", "read_local", local[node], _expected(at_home), _operations(at_home))
            add(node, "clienttrace", "write", writes[node], _expected(written), _operations(written))
        served = _grown(before, after, node, "jmx", "BytesRead")
        remote = _grown(before, after, node, "jmx", "RemoteBytesRead")
        away = [row for row in sent if row["destination"] != node]
        add(node, "jmx", "served", served, _expected(sent), _operations(sent))
        add(node, "jmx", "served_remote", remote, _expected(away), _operations(away))
        parts = _arriving(own, before, after, node)
        received = _interface(before, after, node, "received")
        add(node, "interface", "received", received, sum(parts.values()), _operations(read), parts=parts)
    return rows


def _is_read(row: Mapping[str, Any]) -> bool:
    return bool(row.get("operations")) and row["origin"] == "measured.reader"


def _is_write(row: Mapping[str, Any]) -> bool:
    return bool(row.get("operations")) and row["origin"] in ("measured.writer", "modelled.pipeline")


def _expected(rows: Iterable[Mapping[str, Any]]) -> int:
    return sum(row.get("traced_bytes", 0) for row in rows)


def _operations(rows: Iterable[Mapping[str, Any]]) -> int:
    return sum(row.get("operations", 0) for row in rows)


def _traced(
    before: Mapping[str, Reading], after: Mapping[str, Reading], names: Mapping[str, str]
) -> tuple[Counter[str] | None, Counter[str], Counter[str]]:
    """Bytes by reading node over all traces, by node from its own DataNode, and by node whose DataNode took them in.

    The first is None where no trace was read at both ends.
    """
    reads, local, writes = Counter[str](), Counter[str](), Counter[str]()
    known = False
    for node in before.keys() & after.keys():
        first, last = before[node]["trace"], after[node]["trace"]
        if first is None or last is None:
            continue
        known = True
        for address, (count, _) in last["read"].items():
            grown = count - first["read"].get(address, (0, 0))[0]
            reader = names.get(address, address)
            reads[reader] += grown
            local[node] += grown if reader == node else 0
        for address, (count, _) in last["write"].items():
            writes[node] += count - first["write"].get(address, (0, 0))[0]
    return reads if known else None, local, writes


def _grown(
    before: Mapping[str, Reading], after: Mapping[str, Reading], node: str, witness: str, key: str
) -> int | None:
    first, last = (before.get(node) or {}).get(witness), (after.get(node) or {}).get(witness)
    if not first or not last or key not in first or key not in last:
        return None
    if any(last[name] < first[name] for name in last.keys() & first.keys()):  # the daemon was started anew
        return None
    return int(last[key] - first[key])


def _arriving(
    own: Iterable[Mapping[str, Any]], before: Mapping[str, Reading], after: Mapping[str, Reading], node: str
) -> dict[str, int]:
    """What should have come in over a node's network, by our own count: {data, control, headers}."""
    arrived = [row for row in own if row["destination"] == node != row["source"]]
    data = sum(row.get("traced_bytes") or row["bytes"] for row in arrived if row["class"] != "control")
    data += sum(-(-row["bytes"] // CHUNK_BYTES) * CRC_BYTES for row in arrived if _is_write(row))
    # What the head says to a node's store comes in on sockets of the node's own process, which the kernel counts.
    told = sum(row["bytes"] for row in arrived if row["class"] == "control" and not _is_from_head(row))
    packets = _interface(before, after, node, "packets") or 0
    return {"data": data, "control": told + _control(before, after, node), "headers": packets * HEADER_BYTES}


def _is_from_head(row: Mapping[str, Any]) -> bool:
    return bool(row["source"] == "head" and row["origin"] == "measured.writer")


def _interface(before: Mapping[str, Reading], after: Mapping[str, Reading], node: str, what: str) -> int | None:
    """How far a counter of the node's network went on, over all its interfaces but `lo`."""
    first, last = (before.get(node) or {}).get("interfaces"), (after.get(node) or {}).get("interfaces")
    if not first or not last:
        return None
    wires = [name for name in last if name != "lo" and name in first]
    return sum(int(last[name].get(what, 0)) - int(first[name].get(what, 0)) for name in wires)


def _control(before: Mapping[str, Reading], after: Mapping[str, Reading], node: str) -> int:
    """What dask's connections brought the node's process from the head, and the NameNode its DataNode."""
    first, last = (before.get(node) or {}).get("control"), (after.get(node) or {}).get("control")
    return max(0, int(last - first)) if first is not None and last is not None else 0


def remarks(events: Sequence[Event], cluster: Cluster) -> list[str]:
    """Which witnesses there were, and whether others may have used the same counters."""
    readings = [event["nodes"] for event in events if event["type"] == "witnesses" and event["nodes"]]
    if not readings:
        return []
    told = []
    why: dict[str, list[str]] = {}
    for node, reading in readings[-1].items():
        for witness, reason in reading["missing"].items():
            if not reason.startswith("no DataNode"):
                why.setdefault(f"{witness} ({reason})", []).append(node)
    told += [f"No witness: {what} on {', '.join(nodes)}." for what, nodes in why.items()]
    broken_off = sorted(
        {stage for closed, _, _, within in _windows(events) if not closed for stage, row in counted(within)}
    )
    if broken_off:
        told.append(
            f"{', '.join(broken_off)}: no witness for what was moved before the run broke off (or still runs), the counters were "
            "not read at its end."
        )
    if cluster.kind == "netns":
        told.append(
            "Each node's interface and DataNode served this cluster only: no other tenant is in their counters."
        )
    else:
        told.append("Interface and DataNode counters count whatever else used the nodes in the same window.")
    return told


def in_words(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """One line per arm and kind of witness: both figures and their difference."""
    from datalocal.units import format_bytes

    groups: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["witness"] != "reader":
            groups.setdefault((row["arm"], row["witness"], row["direction"]), []).append(row)
    lines = []
    for (arm, witness, direction), found in groups.items():
        count, expected = sum(row["bytes"] for row in found), sum(row["expected_bytes"] for row in found)
        apart = sum(abs(row["bytes"] - row["expected_bytes"]) for row in found)
        differs = "to the byte" if not apart else f"apart by {format_bytes(apart)}"
        if apart and expected:
            differs += f" ({100 * apart / expected:.2g} %)"
        lines.append(
            f"{arm}: {witness} {direction.replace('_', ' ')} {format_bytes(count)}, by our own count "
            f"{format_bytes(expected)}, {differs}"
        )
    return lines
