"""How long a plan takes, stage by stage, and the energy of it: one model for every arm. Pure.

A stage is over when its busiest resource is: a node's cores, its disk, its link each way, and, where several nodes are on one host,
the host's cores and disk. A task reads a row group while it computes on the one before and writes when it has computed, so of
several row groups reading hides behind computing, and writing never does. What a node serves to others takes its disk, its link
and a little of its cores.

Training: a step takes (Tc^g + Ts^g)^(1/g), Tc the slowest rank's computing, Ts of a ring all-reduce (`steps`); reading hides
behind the steps, and validation, which comes after them, reads anew.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from datalocal.catalog.model import Catalog
from datalocal.estimate.bytes import (
    Estimate,
    Flows,
    checkpoints_per_epoch,
    exact_sums,
    shard_numbers,
    steps_per_epoch,
)
from datalocal.estimate.rates import NodeRates, Overhead, Rates
from datalocal.estimate.steps import read_ahead_seconds, ring_seconds, step_seconds
from datalocal.placement.model import Plan, StagePlan
from datalocal.placement.problem import Ints, Mask
from datalocal.spec.cluster import PowerProfile
from datalocal.spec.job import JobSpec, Train

WIRE_JOULES_PER_GB = 2.7
"""Switch hops, two network cards and two TCP stacks, marginal: 0.6 to 6.5 J/GB (switches: Jacob et al., NetPowerBench)."""

Component = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCost:
    """One stage. Sums of resources, not of time: what overlaps is in several of them."""

    stage: str
    seconds: float | None
    reason: str = ""
    """Why there are no seconds."""
    start_seconds: float = 0.0
    bottleneck: str = ""
    """What the stage waits for: `compute on`, `disk of` or `link of` a node, `cores of host` or `disk of host`; in training
    `compute`, `sync` or `reading`."""
    serving_seconds: float = 0.0
    """How much longer the stage takes because storage nodes serve others beside their own work."""
    busy_core_seconds: float = 0.0
    step_seconds: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """All stages of a plan."""

    policy: str
    origin: str
    stages: tuple[StageCost, ...]
    joules: tuple[Component, ...]

    @property
    def seconds(self) -> float | None:
        """The sum; None when a stage has none."""
        known = [stage.seconds for stage in self.stages if stage.seconds is not None]
        return sum(known) if len(known) == len(self.stages) else None

    @property
    def reason(self) -> str:
        """Why there are no seconds."""
        return "; ".join(dict.fromkeys(f"{stage.stage}: {stage.reason}" for stage in self.stages if stage.reason))


class _MissingError(Exception):
    """A rate that is not known."""


def cost(
    plan: Plan,
    job: JobSpec,
    catalog: Catalog,
    found: Estimate,
    rates: Rates | None,
    *,
    power: PowerProfile | None = None,
    gradient_bytes: int | None = None,
    warm: Collection[str] = (),
) -> Cost:
    """Seconds and joules of `plan`, whose bytes are `found`. Without rates: no seconds, and the reason.

    `warm`: nodes that have trained before, whose interpreters are up.
    """
    stages = []
    for stage in plan.stages:
        flows = [flows for flows in found.flows if flows.stage == stage.name]
        if rates is None:
            stages.append(StageCost(stage=stage.name, seconds=None, reason=NO_RATES))
            continue
        try:
            if stage.kind == "train" and job.train is not None:
                stages.append(_train(stage, job.train, found, flows, rates, gradient_bytes, warm))
            else:
                stages.append(_independent(stage, catalog, flows, rates))
        except _MissingError as missing:
            stages.append(StageCost(stage=stage.name, seconds=None, reason=str(missing)))
    origin = "modelled.plan" if rates is None else rates.origin
    return Cost(
        policy=plan.policy,
        origin=origin,
        stages=tuple(stages),
        joules=tuple(_joules(plan, stages, found, rates, power)),
    )


NO_RATES = "no rates are known: give `rates` in the cluster file, or `--calibrate RUN`"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Load:
    """Bytes of a stage, by node."""

    read_own: Counter[str]
    read_away: Counter[str]
    served: Counter[str]
    written: Counter[str]
    """To the node's disk, whoever writes."""
    copied: Counter[str]
    """To its disk by itself, as it comes in."""
    sent_out: Counter[str]
    """Results that the node writes to others."""
    received: Counter[str]

    @classmethod
    def of(cls, flows: Iterable[Flows]) -> _Load:
        load = cls(**{name: Counter() for name in cls.__dataclass_fields__})
        for each in flows:
            if each.class_ in ("gradients", "checkpoint"):
                continue
            if each.bytes is None:
                raise _MissingError(f"bytes of {each.class_} are not known: {each.reason}")
            away = each.source != each.destination
            if each.class_ == "output":
                load.written.update(_by_node(each, each.destination))
                load.sent_out.update(_by_node(each, each.source, away))
                load.received.update(_by_node(each, each.destination, away))
                continue
            load.read_away.update(_by_node(each, each.destination, away))
            load.served.update(_by_node(each, each.source, away))
            load.read_own.update(_by_node(each, each.destination, ~away))
            if each.class_ == "staging":
                load.copied.update(_by_node(each, each.destination))
        return load

    @classmethod
    def flows(cls, amounts: Mapping[tuple[str, str], int]) -> _Load:
        """What is read, by (source, reader)."""
        load = cls.of(())
        for (source, reader), amount in amounts.items():
            (load.read_own if source == reader else load.read_away)[reader] += amount
            if source != reader:
                load.served[source] += amount
        return load

    def without(self, other: _Load, times: int) -> _Load:
        """What is left when the other has been read so often."""
        left = {
            name: Counter(
                {node: size - times * getattr(other, name)[node] for node, size in getattr(self, name).items()}
            )
            for name in self.__dataclass_fields__
        }
        return _Load(**left)


def _by_node(flows: Flows, nodes: Ints, which: Mask | slice = slice(None)) -> dict[str, int]:
    """Bytes of those pairs in `which` [K], summed over `nodes` [K]."""
    names = flows.places.names
    assert flows.bytes is not None
    sums = exact_sums(nodes[which], flows.bytes[which], len(names))
    return {names[node]: int(sums[node]) for node in np.flatnonzero(sums).tolist()}


def _need(value: float | None, what: str, node: str) -> float:
    if value is None:
        raise _MissingError(f"{what} of {node} is not known")
    return value


def _independent(stage: StagePlan, catalog: Catalog, flows: list[Flows], rates: Rates) -> StageCost:
    load, made = _Load.of(flows), stage.assignments
    shard, many = shard_numbers(made, catalog), len(made.names)
    row_groups = np.diff(catalog.group_offsets)[shard]
    images = dict(zip(made.names, exact_sums(made.node, catalog.shard_rows[shard], many).tolist(), strict=True))
    groups = dict(zip(made.names, exact_sums(made.node, row_groups, many).tolist(), strict=True))
    tasks = dict(zip(made.names, np.bincount(made.node, minlength=many).tolist(), strict=True))
    works = stage.kind == "preprocess"

    def per_image(node: NodeRates, name: str) -> float:
        return _need(node.preprocess_core_seconds, "the rate of preprocessing", name) if works else 0.0

    work = _Work(
        core_seconds={name: images[name] * per_image(rates.nodes[name], name) for name in stage.nodes},
        beside={name: tasks[name] * rates.task_core_seconds for name in stage.nodes},
        pieces={name: groups[name] / count for name, count in tasks.items() if count},
    )
    start = _start(rates.start if works else rates.staging, stage.nodes, rates)
    seconds, what = _finish(stage, work, load, rates, serving=True)
    alone, _ = _finish(stage, work, load, rates, serving=False)
    return StageCost(
        stage=stage.name,
        seconds=start + seconds,
        start_seconds=start,
        bottleneck=what,
        serving_seconds=max(0.0, seconds - alone),
        busy_core_seconds=sum(work.core_seconds.values()) + sum(work.beside.values()),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """What the tasks of a stage compute, by node."""

    core_seconds: Mapping[str, float]
    beside: Mapping[str, float]
    """Of each task before its first image and after its last: on one core, with nothing behind it."""
    pieces: Mapping[str, float]
    """Row groups of a task: it reads one while it works on the one before."""


def _finish(stage: StagePlan, work: _Work, load: _Load, rates: Rates, *, serving: bool) -> tuple[float, str]:
    """When the last resource is done, and which it is."""
    done: dict[str, float] = {}
    cores: dict[str, float] = defaultdict(float)
    disks: dict[str, float] = defaultdict(float)
    for name in sorted({*stage.nodes, *load.served, *load.written, *load.copied}):
        node = rates.nodes[name]
        given = load.served[name] if serving else 0
        computing = work.core_seconds.get(name, 0.0) + given * node.serve_seconds_per_byte
        beside = work.beside.get(name, 0.0)
        own = _over(load.read_own[name], node.read_bytes_per_second, "the rate of the disk", name)
        away = _over(load.read_away[name], node.link_bytes_per_second, "the rate of the link", name)
        shipped = _over(load.sent_out[name], node.link_bytes_per_second, "the rate of the link", name)
        write = _over(load.written[name], node.write_bytes_per_second, "the rate of the disk", name)
        copy_rate = node.copy_bytes_per_second or node.read_bytes_per_second
        write += _over(load.copied[name], copy_rate, "the rate of the disk", name)
        lent = _over(given, node.read_bytes_per_second, "the rate of the disk", name)
        within = read_ahead_seconds(own + away, computing / (node.cores * node.slots), work.pieces.get(name, 1.0))
        done[f"compute on {name}"] = within + beside / node.slots + write + shipped
        done[f"disk of {name}"] = own + lent + write
        sent = load.sent_out[name] + given
        done[f"link of {name}"] = max(
            _over(sent, node.link_bytes_per_second, "the rate of the link", name),
            _over(load.read_away[name] + load.received[name], node.link_bytes_per_second, "the rate of the link", name),
        )
        cores[node.host] += computing + beside + own + write + (away + shipped if rates.loopback else 0.0)
        disks[node.host] += own + lent + write
    crowd = rates.on_host
    for host in cores:
        if crowd[host] > 1:
            done[f"cores of host {host}"] = cores[host] / rates.host_cores[host]
            done[f"disk of host {host}"] = disks[host] / max(1.0, rates.host_cores[host])
    what = max(done, key=lambda key: done[key])
    return done[what], what


def _over(size: float, per_second: float | None, what: str, node: str) -> float:
    return size / _need(per_second, what, node) if size else 0.0


def _start(overhead: Overhead, nodes: Iterable[str], rates: Rates) -> float:
    processes = Counter(rates.nodes[name].host for name in nodes)
    return max(overhead.seconds(count, rates.host_cores[host]) for host, count in processes.items())


def _train(
    stage: StagePlan,
    train: Train,
    found: Estimate,
    flows: list[Flows],
    rates: Rates,
    gradient_bytes: int | None,
    warm: Collection[str],
) -> StageCost:
    load, exact = _Load.of(flows), found.gangs.get(stage.name)
    trained: Mapping[str, float]
    validated: Mapping[str, float]
    if exact is not None:
        trained, validated, steps = exact.trained_rows, exact.validated_rows, exact.steps
    else:
        trained, validated = dict.fromkeys(stage.nodes, found.training_rows / len(stage.nodes)), {}
        steps = steps_per_epoch(train, found.training_rows)

    def core_seconds(counts: Mapping[str, float], rate: Callable[[NodeRates], float | None]) -> dict[str, float]:
        return {
            name: counts.get(name, 0) * _need(rate(rates.nodes[name]), "the rate of training", name)
            for name in stage.nodes
        }

    computing = core_seconds(trained, lambda node: node.train_core_seconds)
    compute_seconds = _together(computing, rates) / max(steps, 1)
    sync_seconds = _sync(stage.nodes, rates, gradient_bytes)
    step = step_seconds(compute_seconds, sync_seconds, rates.gamma)
    checking, checked = 0.0, _Load.flows(exact.validated_bytes if exact is not None else {})
    if exact is not None and validated:
        own = _together(core_seconds(validated, lambda node: node.validate_core_seconds), rates)
        checking = read_ahead_seconds(_reading(stage, checked, rates), own, exact.validated_pieces)
    reading = _reading(stage, load.without(checked, train.epochs), rates) / train.epochs
    saving = rates.checkpoint_seconds * checkpoints_per_epoch(train, steps)
    epoch = max(steps * step, reading) + checking + saving
    start = _start(rates.gang, stage.nodes, rates)
    if cold := [name for name in stage.nodes if name not in warm]:
        start += _start(rates.cold, cold, rates)
    if train.validation is not None and train.validation.fraction is None:
        start += _start(rates.select, stage.nodes, rates)
    what = "reading" if reading > steps * step else "sync" if sync_seconds > compute_seconds else "compute"
    return StageCost(
        stage=stage.name,
        seconds=start + train.epochs * epoch,
        start_seconds=start,
        bottleneck=what,
        busy_core_seconds=train.epochs * sum(computing.values()),
        step_seconds=step,
    )


def _together(core_seconds: Mapping[str, float], rates: Rates) -> float:
    """Seconds until every rank has done its part, on its own cores and on those of its host."""
    hosts: dict[str, float] = defaultdict(float)
    slowest = 0.0
    for name, work in core_seconds.items():
        node = rates.nodes[name]
        hosts[node.host] += work
        slowest = max(slowest, work / node.cores)
    crowd = rates.on_host
    shared = [work / rates.host_cores[host] for host, work in hosts.items() if crowd[host] > 1]
    return max([slowest, *shared])


def _sync(nodes: tuple[str, ...], rates: Rates, gradient_bytes: int | None) -> float:
    """One ring all-reduce; a rank sends 2 (m - 1) / m of the gradients. On loopback ranks share what the host's cores send."""
    m = len(nodes)
    if m < 2 or rates.sync_within:
        return 0.0
    if gradient_bytes is None:
        raise _MissingError("the size of the model's gradients is not known before it is built")
    on_host = Counter(rates.nodes[name].host for name in nodes)

    def sends(name: str) -> float:
        node = rates.nodes[name]
        per_second = rates.sync_bytes_per_second or _need(node.link_bytes_per_second, "the rate of the link", name)
        return per_second / max(1.0, on_host[node.host] / rates.host_cores[node.host]) if rates.loopback else per_second

    return ring_seconds(m, gradient_bytes, min(map(sends, nodes)), rates.sync_latency_seconds)


def _reading(stage: StagePlan, load: _Load, rates: Rates) -> float:
    """What reading takes in all epochs, were nothing else done."""
    slowest = 0.0
    for name in sorted({*stage.nodes, *load.served}):
        node = rates.nodes[name]
        own = load.read_own[name] + load.served[name]
        slowest = max(
            slowest,
            _over(own, node.read_bytes_per_second, "the rate of the disk", name),
            _over(load.read_away[name], node.link_bytes_per_second, "the rate of the link", name),
            _over(load.served[name], node.link_bytes_per_second, "the rate of the link", name),
        )
    return slowest


NO_PROFILE = "no meter runs before the job does, and the cluster file declares no `power`"


def _joules(
    plan: Plan, stages: list[StageCost], found: Estimate, rates: Rates | None, power: PowerProfile | None
) -> Iterable[Component]:
    """Idle and busy watts of the hosts that work, for as long as the arm takes, and the wire at the margin."""
    seconds = [stage.seconds for stage in stages if stage.seconds is not None]
    if power is None:
        yield {"component": "host", "joules": None, "origin": "missing", "reason": NO_PROFILE}
        return
    if rates is None or len(seconds) < len(stages):
        yield {"component": "host", "joules": None, "origin": "missing", "reason": "the arm's seconds are not known"}
    else:
        hosts = {rates.nodes[name].host for stage in plan.stages for name in stage.nodes}
        sources = {
            flows.places.names[node]
            for flows in found.flows
            for node in np.flatnonzero(np.bincount(flows.source)).tolist()
        }
        hosts |= {rates.nodes[name].host for name in sources if name in rates.nodes}
        watts = f"{power.idle_watts:g} W idle, {power.busy_watts:g} W busy, {len(hosts)} hosts that hold or work on the data"
        busy = sum(stage.busy_core_seconds for stage in stages) / max(
            sum(rates.host_cores[host] for host in hosts) / len(hosts), 1e-9
        )
        busy = min(busy, sum(seconds) * len(hosts))
        yield {
            "component": "host idle",
            "joules": power.idle_watts * sum(seconds) * len(hosts),
            "origin": "assumed",
            "reason": f"declared: {watts}",
        }
        yield {
            "component": "host busy",
            "joules": (power.busy_watts - power.idle_watts) * busy,
            "origin": "assumed",
            "reason": f"declared, above idle: {watts}",
        }
    if found.summary.unknown:
        yield {"component": "wire", "joules": None, "origin": "missing", "reason": "not all bytes are known"}
    else:
        yield wire(found.summary.bytes_off_node)


def wire(moved_bytes: int) -> Component:
    """What bytes that leave a node take on the network."""
    return {
        "component": "wire",
        "joules": moved_bytes * WIRE_JOULES_PER_GB / 1e9,
        "origin": "modelled.literature",
        "reason": f"at the margin, {WIRE_JOULES_PER_GB} J/GB (0.6 to 6.5)",
    }


def trains_on(plan: Plan) -> set[str]:
    """The nodes whose interpreters are warm after the plan."""
    return {name for stage in plan.stages if stage.kind == "train" for name in stage.nodes}
