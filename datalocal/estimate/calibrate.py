"""Rates from the records of a real run. Pure: its manifest and events in, rates out.

Where several nodes are on one host their threads take turns on its cores, so what a task's clock shows is longer than what it
needed. The share of a core that each thread had is worked out from which tasks ran at the same time, and seconds become
core-seconds before anything is fitted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import mean, median
from typing import Any

import numpy as np
from scipy.optimize import nnls

from datalocal.errors import RequestError
from datalocal.estimate.rates import NodeRates, Overhead, Rates, cores_of_hosts, filled, hosts_of, shaped
from datalocal.estimate.reading import FOOTER_READ_BYTES
from datalocal.estimate.steps import read_ahead_seconds
from datalocal.spec.cluster import Cluster

Event = Mapping[str, Any]
WORK = ("decode", "transform", "encode")


def calibrate(manifest: Mapping[str, Any], arms: Mapping[str, Sequence[Event]], cluster: Cluster) -> Rates:
    """The rates of `cluster`, fitted to the arms of a run of it that completed a stage.

    Raises RequestError when the run was one of another cluster, or has nothing to fit.
    """
    run = str(manifest["id"])
    ran_on = Cluster.model_validate(manifest["cluster"])
    if {node.name for node in ran_on.nodes} != {node.name for node in cluster.nodes}:
        raise RequestError(
            f"run {run} was one of the cluster {ran_on.name} with other nodes than {cluster.name}",
            "calibrate on a run of this cluster",
        )
    hosts = hosts_of(ran_on, manifest.get("hosts"))
    everything = [event for events in arms.values() for event in events]
    host_cores = cores_of_hosts(ran_on.nodes, hosts, measured_cores(everything))
    scene = _Scene(cluster=ran_on, hosts=hosts, host_cores=host_cores)
    stages = [found for name in manifest["policies"] for found in _stages(arms.get(name, ()))]
    tasks, gangs = _Tasks(), _Gangs()
    for found in stages:
        if found.kind == "train":
            gangs.add(found, scene)
        else:
            tasks.add(found, scene)
    if not tasks.images and not tasks.copied and not gangs.core_seconds:
        raise RequestError(f"no arm of run {run} has finished a stage", "calibrate on a run that completed")
    rates = Rates(
        origin="modelled.calibrated",
        source=run,
        nodes={
            node.name: NodeRates(host=hosts[node.name], cores=node.cores, slots=node.slots) for node in ran_on.nodes
        },
        host_cores=host_cores,
        loopback=ran_on.kind == "embedded",
    )
    return filled(gangs.fit(tasks.fit(rates, scene)))


def measured_cores(events: Iterable[Event]) -> dict[str, float]:
    """Cores by host: processor seconds that the kernel had to give, per second that passed."""
    seen: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for event in events:
        if event["type"] == "meters":
            for host, reading in event["hosts"].items():
                seen[host].append((reading["monotonic"], reading["cpu_total_seconds"]))
    found = {}
    for host, readings in seen.items():
        (begin, first), (end, last) = min(readings), max(readings)
        if end > begin and last > first:
            found[host] = max(1.0, round((last - first) / (end - begin)))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scene:
    cluster: Cluster
    hosts: Mapping[str, str]
    host_cores: Mapping[str, float]

    def cores(self, node: str) -> int:
        return self.cluster.node(node).cores

    def link(self, node: str) -> float | None:
        """Bytes per second, where something shapes the node's link."""
        return shaped(self.cluster, self.cluster.node(node))

    def crowd(self, nodes: Iterable[str]) -> float:
        """Processes for each core, on the fullest host; 0 for none."""
        return max(self.fullest(nodes).values(), default=0.0)

    def fullest(self, nodes: Iterable[str]) -> dict[str, float]:
        counts: dict[str, int] = defaultdict(int)
        for node in nodes:
            counts[self.hosts[node]] += 1
        return {host: count / self.host_cores[host] for host, count in counts.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Stage:
    """A stage that went through without trouble."""

    kind: str
    nodes: tuple[str, ...]
    began: float
    seconds: float
    events: list[Event]

    def records(self, kind: str) -> list[dict[str, Any]]:
        return [event["record"] for event in self.events if event["type"] == kind]


def _stages(events: Sequence[Event]) -> Iterable[_Stage]:
    open_: Event | None = None
    inside: list[Event] = []
    for event in events:
        if event["type"] == "stage_started":
            open_, inside = event, []
        elif event["type"] == "stage_finished" and open_ is not None:
            if not any(each["type"] in ("replaced", "node_lost", "failure") for each in inside):
                yield _Stage(
                    kind=open_["kind"],
                    nodes=tuple(open_["nodes"]),
                    began=open_["time"],
                    seconds=event["seconds"],
                    events=inside,
                )
            open_ = None
        else:
            inside.append(event)


def shares(intervals: Sequence[tuple[float, float, str, int]], host_cores: Mapping[str, float]) -> list[float]:
    """The share of a core that each thread of a task had, of tasks (begin, end, host, threads) that ran side by side."""
    found = [1.0] * len(intervals)
    for host in {host for _, _, host, _ in intervals}:
        own = [i for i, each in enumerate(intervals) if each[2] == host]
        begins, ends = (np.array([intervals[i][side] for i in own]) for side in (0, 1))
        threads = np.array([intervals[i][3] for i in own])
        moments = np.unique([begins, ends])
        first, last = np.searchsorted(moments, begins), np.searchsorted(moments, ends)
        change = np.bincount(first, threads, len(moments)) - np.bincount(last, threads, len(moments))
        share = np.minimum(1.0, host_cores[host] / np.maximum(np.cumsum(change)[:-1], 1e-9))
        had = np.concatenate(([0.0], np.cumsum(share * np.diff(moments))))
        for i, got, lasted in zip(own, had[last] - had[first], ends - begins, strict=True):
            if lasted > 0:
                found[i] = min(1.0, float(got / lasted))
    return found


@dataclass(slots=True, kw_only=True)
class _Tasks:
    """What staging and preprocess tasks tell."""

    images: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    working: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    moved: dict[tuple[str, str], float] = field(default_factory=lambda: defaultdict(float))
    """(what, node) -> bytes; what: own, away, written, copied."""
    spent: dict[tuple[str, str], float] = field(default_factory=lambda: defaultdict(float))
    rest: list[float] = field(default_factory=list)
    starts: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))
    """By kind of stage: (processes for each core, seconds)."""
    copied: int = 0
    read_bytes: int = 0
    written_bytes: int = 0

    def add(self, stage: _Stage, scene: _Scene) -> None:
        records = stage.records("task")
        if not records:
            return
        spans = [
            (r["started"], r["started"] + r["seconds"], scene.hosts[r["node"]], scene.cores(r["node"])) for r in records
        ]
        first: dict[str, float] = {}
        for record in records:
            first[record["node"]] = min(first.get(record["node"], np.inf), record["started"])
        settling = []
        for record, share in zip(records, shares(spans, scene.host_cores), strict=True):
            beside = self._take(record, share, scene)
            if record["started"] == first[record["node"]]:
                settling.append(beside)  # the first task of a process imports what the others find
            else:
                self.rest.append(beside * share)
        after = stage.began + stage.seconds - max(end for _, end, _, _ in spans)
        before = mean(first.values()) - stage.began
        self.starts[stage.kind].append((scene.crowd(stage.nodes), max(0.0, before) + max(0.0, after) + mean(settling)))

    def _take(self, record: Mapping[str, Any], share: float, scene: _Scene) -> float:
        """Note what the task did; the seconds that it took beside its images."""
        cores, link = scene.cores(record["node"]), scene.link(record["node"])
        node, steps = record["node"], {name: value * share for name, value in record["seconds_by_step"].items()}
        inputs = [row for row in record["bytes"] if row["class"] in ("input", "staging") and row["destination"] == node]
        away = sum(row["bytes"] for row in inputs if row["source"] != node)
        own = sum(row["bytes"] for row in inputs if row["source"] == node and row["class"] == "input")
        outputs = [row for row in record["bytes"] if row["class"] == "output"]
        written = sum(row["bytes"] for row in outputs)
        shipped = sum(row["bytes"] for row in outputs if row["destination"] != node)
        # Copies are written one after the other: what a shaped link takes of that is no work of a disk.
        writing = max(0.0, record["seconds_by_step"]["write"] - (shipped / link if link else 0.0)) * share
        if record["kind"] == "staging":
            self.copied += 1
        else:
            self.images[node] += record["images_in"]
            self.working[node] += sum(steps[name] for name in WORK)
            self.read_bytes += max(
                own + away - FOOTER_READ_BYTES, (own + away) // 2
            )  # the shard, and once more its end
            self.written_bytes += record["output_bytes"]
        for what, size, spent in (
            ("own", own, steps["read"] if not away else 0.0),
            ("away", away, steps["read"] if not own else 0.0),
            ("written", written, writing),
            ("copied", record["output_bytes"] if record["kind"] == "staging" else 0, steps["write"]),
        ):
            if size and spent:
                self.moved[what, node] += size
                self.spent[what, node] += spent
        told = record["seconds_by_step"]
        working = sum(told.get(name, 0.0) for name in WORK) / cores
        busy: float = read_ahead_seconds(told["read"], working, record.get("row_groups") or float("inf"))
        return max(0.0, float(record["seconds"]) - busy - float(told["write"]))

    def _rate(self, what: str, node: str) -> float | None:
        spent = self.spent.get((what, node), 0.0)
        return self.moved[what, node] / spent if spent else None

    def fit(self, rates: Rates, scene: _Scene) -> Rates:
        nodes = {
            name: replace(
                node,
                read_bytes_per_second=self._rate("own", name),
                write_bytes_per_second=self._rate("written", name),
                copy_bytes_per_second=self._rate("copied", name),
                link_bytes_per_second=scene.link(name) or self._rate("away", name),
                preprocess_core_seconds=self.working[name] / self.images[name] if self.images.get(name) else None,
            )
            for name, node in rates.nodes.items()
        }
        notes = list(rates.notes)
        if not any(node.link_bytes_per_second for node in nodes.values()) and self.moved:
            notes.append(
                f"Run {rates.source} read nothing from another node: a link is taken to be as fast as a write."
            )
            nodes = {
                name: replace(node, link_bytes_per_second=node.write_bytes_per_second) for name, node in nodes.items()
            }
        return replace(
            rates,
            nodes=nodes,
            start=overhead(self.starts["preprocess"]),
            staging=overhead(self.starts["staging"]),
            task_core_seconds=median(self.rest) if self.rest else 0.0,
            output_share=self.written_bytes / self.read_bytes if self.read_bytes else None,
            notes=tuple(notes),
        )


@dataclass(slots=True)
class _Paces:
    """Core-seconds of an image, by node."""

    images: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    core_seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, node: str, images: float, core_seconds: float) -> None:
        self.images[node] += images
        self.core_seconds[node] += core_seconds

    def of(self, node: str) -> float | None:
        """None where none was seen there."""
        return self.core_seconds[node] / self.images[node] if self.images.get(node) else None


@dataclass(slots=True, kw_only=True)
class _Gangs:
    """What train stages tell: a line per stage."""

    core_seconds: list[float] = field(default_factory=list)
    """Of a rank, waiting for data and computing."""
    images: list[float] = field(default_factory=list)
    sent_bytes: list[float] = field(default_factory=list)
    trained: _Paces = field(default_factory=lambda: _Paces())
    validated: _Paces = field(default_factory=lambda: _Paces())
    checkpoints: list[float] = field(default_factory=list)
    starts: list[tuple[float, float, float]] = field(default_factory=list)
    """(ranks for each core, those of them that start cold, seconds)"""
    selects: list[tuple[float, float]] = field(default_factory=list)
    warm: set[str] = field(default_factory=set)

    def add(self, stage: _Stage, scene: _Scene) -> None:
        ranks = [event for event in stage.events if event["type"] == "rank"]
        launches = [event for event in stage.events if event["type"] == "launch"]
        if len(launches) != 1 or not ranks or not ranks[0]["seconds_by_step"]:
            return
        nodes = [rank["node"] for rank in ranks]
        demand: dict[str, float] = defaultdict(float)
        for node in nodes:
            demand[scene.hosts[node]] += scene.cores(node)
        had = [min(1.0, scene.host_cores[scene.hosts[node]] / demand[scene.hosts[node]]) for node in nodes]
        steps = [rank["seconds_by_step"] for rank in ranks]
        weight = [share * scene.cores(node) for share, node in zip(had, nodes, strict=True)]
        sent = [rank["gradients"].get("payload_bytes", 0.0) for rank in ranks]
        wired = [size / link if (link := scene.link(node)) else 0.0 for size, node in zip(sent, nodes, strict=True)]
        spent = [w * max(0.0, s["wait"] + s["compute"] - wire) for w, s, wire in zip(weight, steps, wired, strict=True)]
        self.core_seconds.append(mean(spent))
        self.images.append(mean(rank["images"] for rank in ranks))
        self.sent_bytes.append(0.0 if any(wired) else mean(sent))  # what a shaped link takes is no work of a core
        checked: dict[int, int] = defaultdict(int)
        for event in stage.events:
            if event["type"] == "validation":
                checked[event["rank"]] += event["total"]
        for rank, w, took, training in zip(ranks, weight, steps, spent, strict=True):
            self.trained.add(rank["node"], rank["images"], training)
            link, away = scene.link(rank["node"]), rank.get("validate_away_bytes", 0)
            if not link or away / link < took["validate"] / 2:  # else the link's pace was seen there, not the node's
                self.validated.add(rank["node"], checked[rank["rank"]], w * took["validate"])
        saved = len({event["name"] for event in stage.events if event["type"] == "checkpoint"})
        if saved:
            self.checkpoints.append(max(s["checkpoint"] for s in steps) / saved)
        busy = max(sum(s.values()) for s in steps)
        selecting = self._selecting(stage, launches[0]["time"])
        cold = scene.crowd(set(nodes) - self.warm)
        self.warm |= set(nodes)
        self.starts.append((scene.crowd(nodes), cold, max(0.0, stage.seconds - busy - selecting)))
        if selecting:
            self.selects.append((scene.crowd(stage.nodes), selecting))

    @staticmethod
    def _selecting(stage: _Stage, launched: float) -> float:
        """Seconds of asking which rows validate; the nodes told their bytes then, before the launch."""
        asked = [event for event in stage.events if event["type"] == "bytes" and event["time"] < launched]
        return max(0.0, launched - stage.began) if asked else 0.0

    def fit(self, rates: Rates) -> Rates:
        if not self.core_seconds:
            return rates
        notes = list(rates.notes)
        sent, images = np.array(self.sent_bytes), np.array(self.images)
        matrix = np.stack([images, sent], axis=1)
        per_image, per_byte = 0.0, 0.0
        if np.linalg.matrix_rank(matrix / np.maximum(matrix.max(axis=0), 1e-12)) == 2:
            scale = matrix.max(axis=0)
            solved, _ = nnls(matrix / scale, np.array(self.core_seconds))
            per_image, per_byte = (float(x) for x in solved / scale)
        if per_image == 0.0:
            per_image, per_byte = float(np.sum(self.core_seconds) / images.sum()), 0.0
            if sent.any():
                notes.append(
                    f"Run {rates.source} trained in gangs of one size: what synchronising costs is inside the rate of training, "
                    "and a gang of another size is foretold wrongly by that much."
                )
        gang, cold = gang_overheads(self.starts)
        if all(fresh for _, fresh, _ in self.starts):
            notes.append(
                f"No gang of run {rates.source} started on nodes that had trained before: such a start is taken to cost nothing."
            )
        validated = any(self.validated.images.values())
        nodes = {
            name: replace(
                node,
                # A rank of several threads needs more core-seconds of an image than one that has a core to itself. Where
                # synchronising is told by the difference between gangs, all ranks have to be taken as alike.
                train_core_seconds=per_image if per_byte else self.trained.of(name),
                validate_core_seconds=self.validated.of(name) if validated else per_image,
            )
            for name, node in rates.nodes.items()
        }
        return replace(
            rates,
            nodes=nodes,
            gang=gang,
            cold=cold,
            select=overhead(self.selects) if self.selects else rates.start,
            sync_bytes_per_second=1 / per_byte if per_byte else None,
            sync_within=bool(sent.any()) and not per_byte,
            gamma=1.0,
            checkpoint_seconds=mean(self.checkpoints) if self.checkpoints else 0.0,
            notes=tuple(notes),
        )


def overhead(seen: Sequence[tuple[float, float]]) -> Overhead:
    """From (processes for each core, seconds): what a process costs and what comes on top, neither below 0."""
    if not seen:
        return Overhead()
    crowds, seconds = np.array([x for x, _ in seen]), np.array([y for _, y in seen])
    if np.ptp(crowds) < 1e-9:
        return Overhead(process_core_seconds=float(seconds.mean() / crowds[0]), least=0.0)
    (each, fixed), _ = nnls(np.stack([crowds, np.ones_like(crowds)], axis=1), seconds)
    return Overhead(process_core_seconds=float(each), fixed_seconds=float(fixed), least=0.0)


def gang_overheads(seen: Sequence[tuple[float, float, float]]) -> tuple[Overhead, Overhead]:
    """From (ranks for each core, cold ones for each core, seconds): of a warm gang, and on top of what starts cold."""
    warm = overhead([(ranks, seconds) for ranks, fresh, seconds in seen if not fresh])
    rest = [
        (fresh, max(0.0, seconds - warm.fixed_seconds - warm.process_core_seconds * ranks))
        for ranks, fresh, seconds in seen
        if fresh
    ]
    return warm, overhead(rest)
