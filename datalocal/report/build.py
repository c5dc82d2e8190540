"""The report of a run as JSON values: `build(manifest, events of each arm)`. Pure; the run may have ended, crashed or still run.

Every total can be recomputed from its rows. See schema.json for the shape, which is a contract: keys are added, never renamed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from datalocal.report.cuts import cut_figures
from datalocal.report.energy import joule_rows
from datalocal.report.prediction import prediction
from datalocal.report.stages import stage_figures
from datalocal.report.traffic import byte_rows, headline
from datalocal.report.verdict import verdict
from datalocal.report.witnesses import remarks as witness_remarks
from datalocal.report.witnesses import witness_rows
from datalocal.spec.cluster import Cluster
from datalocal.units import format_bytes

SCHEMA = "datalocal.report/1"
Event = Mapping[str, Any]

DEMO_PHOTOGRAPHS = "photos"
"""The data set of the demo: overlapping crops of few photographs."""


def build(
    manifest: Mapping[str, Any],
    arms: Mapping[str, Sequence[Event]],
    *,
    state: str | None = None,
    estimates: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """The report. `state` is the run's, where it is known: what an arm is that ended without a word.

    `estimates`: what the plans of arms foretold.
    """
    cluster = Cluster.model_validate(manifest["cluster"])
    found = [
        _arm(policy, list(arms.get(policy, ())), cluster, manifest, state or "running")
        for policy in manifest["policies"]
    ]
    for arm in found:
        told = prediction((estimates or {}).get(arm["policy"]), arm["bytes"], [*arm["staging"], *arm["stages"]])
        if told is not None:
            arm["prediction"] = told
    shared = cluster.shared_host or _on_one_host(manifest.get("hosts") or {}, arms, cluster)
    times = [event["time"] for events in arms.values() for event in events]
    job = manifest["job"]
    return {
        "schema": SCHEMA,
        "run": {
            "id": manifest["id"],
            "job": job["name"],
            "dataset": job["dataset"],
            "cluster": cluster.name,
            "seed": manifest["seed"],
            "seconds": max(0.0, max(times, default=manifest["started"]) - manifest["started"]),
            "started": manifest["started"],
            "version": manifest["version"],
            "python": manifest["python"],
            "executor": manifest["executor"],
            "code": manifest.get("code", ""),
            "job_spec": job,
            "cluster_spec": manifest["cluster"],
        },
        "arms": found,
        "witnesses": [
            row for policy in manifest["policies"] for row in witness_rows(policy, arms.get(policy, ()), cluster)
        ],
        "witness_remarks": witness_remarks([event for events in arms.values() for event in events], cluster),
        "verdict": verdict(found, shared_host=shared, in_process=manifest["executor"] == "inline"),
        "shared_host": shared,
        "assumptions": _assumptions(found, cluster, job, shared),
    }


def _on_one_host(hosts: Mapping[str, str], arms: Mapping[str, Sequence[Event]], cluster: Cluster) -> bool:
    """Whether nodes share a physical host, whatever the cluster file says: by their own word, else by whose meters were read."""
    if hosts:
        return len(set(hosts.values())) < len(hosts)
    read = {
        host for events in arms.values() for event in events if event["type"] == "meters" for host in event["hosts"]
    }
    return len(read) == 1 and len(cluster.nodes) > 1


def _arm(
    policy: str, events: list[Event], cluster: Cluster, manifest: Mapping[str, Any], run_state: str
) -> dict[str, Any]:
    last_start = max((i for i, event in enumerate(events) if event["type"] == "stage_started"), default=-1)
    ends = [event for i, event in enumerate(events) if event["type"] == "arm_finished" and i > last_start]
    end: Event = ends[-1] if ends else {}
    state = end.get("state") or ("failed" if run_state == "completed" else run_state)
    names = list(dict.fromkeys(event["stage"] for event in events if event["type"] == "stage_started"))
    stages = [stage_figures(name, events, cluster, over=state != "running") for name in names]
    rows = byte_rows(events, cluster)
    records = [event["record"] for event in events if event["type"] == "task"]
    hosts = manifest.get("hosts") or {}
    not_local = _not_local(end.get("not_local", []), records)
    return {
        "policy": policy,
        "state": state,
        "origin": "measured",
        "error": end.get("error"),
        "seconds": sum(stage["seconds"] for stage in stages),
        "stages": [stage for stage in stages if stage["kind"] != "staging"],
        "staging": [stage for stage in stages if stage["kind"] == "staging"],
        "bytes": rows,
        "headline_bytes": headline(rows, records),
        "joules": joule_rows(names, events, cluster, hosts),
        "not_local": not_local,
        "remarks": [*_split_row_groups(stages, rows, not_local), *_catalog_remarks(events)],
        "cut": cut_figures(events),
        "replaced": [{"stage": stage["name"], **row} for stage in stages for row in stage["replaced"]],
        "damaged": [{"stage": stage["name"], **row} for stage in stages for row in stage["damaged"]],
        "nodes_lost": list(dict.fromkeys(event["node"] for event in events if event["type"] == "node_lost")),
    }


def _not_local(planned: Sequence[Mapping[str, str]], records: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """What really happened where a task tells it, what was planned elsewhere."""
    rows = {(row.get("stage", ""), row["shard"]): row["reason"] for row in planned}
    for record in records:
        if record["kind"] != "staging":
            rows[(record["stage"], record["shard"])] = record["reason"]
    return [{"shard": shard, "reason": reason, "stage": stage} for (stage, shard), reason in rows.items() if reason]


def _split_row_groups(
    stages: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Any]], not_local: Sequence[Mapping[str, str]]
) -> list[str]:
    """Train stages whose shards are all local, and whose ranks read from other nodes all the same."""
    told = []
    away = {row["stage"] for row in not_local}
    for name in (stage["name"] for stage in stages if stage["kind"] == "train" and stage["name"] not in away):
        read = [row for row in rows if row["stage"] == name and row["class"] == "input"]
        moved = sum(row["bytes"] for row in read if row["source"] != row["destination"])
        if moved:
            told.append(
                f"{name}: {format_bytes(moved)} of {format_bytes(sum(row['bytes'] for row in read))} input came from other "
                "nodes: row groups are split between ranks, so that all of them make the same steps."
            )
    return told


def _catalog_remarks(events: Sequence[Event]) -> list[str]:
    """What was said of where the data lie: shards without a preferred node, replicas that did not count."""
    told = [
        f"{event['dataset']}: {text}" for event in events if event["type"] == "catalog" for text in event["warnings"]
    ]
    return list(dict.fromkeys(told))


def _assumptions(
    arms: Sequence[Mapping[str, Any]], cluster: Cluster, job: Mapping[str, Any], shared: bool
) -> list[str]:
    """What a reader has to know before he believes the figures."""
    told = []
    if shared:
        told.append(
            "The nodes share one physical host: its cores, disk and power are counted once, and seconds and joules are not "
            "those of a cluster."
        )
    origins = {row["origin"] for arm in arms for row in arm["joules"]}
    if "assumed" in origins and cluster.power is not None:
        told.append(
            f"Joules marked `assumed` come from watts that the cluster file declares ({cluster.power.idle_watts:g} W idle, "
            f"{cluster.power.busy_watts:g} W busy) and the share of time that the CPUs were busy."
        )
    if "missing" in origins:
        told.append(
            "Joules marked `missing` were neither measured nor declared; they are left out of sums and never 0."
        )
    if any(arm["nodes_lost"] for arm in arms):
        lost = sorted({node for arm in arms for node in arm["nodes_lost"]})
        told.append(
            f"{', '.join(lost)} died: what its processes moved and had not reported yet is missing from that arm's bytes."
        )
    if job["dataset"] == DEMO_PHOTOGRAPHS and any(s["accuracy"] is not None for arm in arms for s in arm["stages"]):
        told.append(
            "The demo's pictures are overlapping crops of few photographs, labelled by photograph: accuracy on them means little."
        )
    told.append(
        "Bytes are payload counted where they are read, written or sent, without the headers of TCP and IP; the scheduler's "
        "own messages are not counted."
    )
    return told
