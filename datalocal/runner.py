"""The story of one run on one page: load, catalogue, place, check, execute, record.

A run is one process that owns its directory. `prepare` refuses bad input before anything starts, `spawn` starts the process
(`python -m datalocal.runner RUN_DIR`) in a session of its own, and everybody else finds the run through the directory.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import platform
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

import datalocal
from datalocal.catalog.model import Catalog
from datalocal.errors import ClusterError, DatalocalError, RunCancelled, SpecError
from datalocal.estimate.rates import Rates
from datalocal.execution.arm import Arm
from datalocal.execution.base import Executor
from datalocal.execution.cutting import cut_pipeline
from datalocal.execution.foresight import Foresight
from datalocal.execution.stages import catalogue, catalogue_of, run_stage, staged_dataset
from datalocal.execution.training import Checkpoints
from datalocal.launch import embedded, existing
from datalocal.launch.running import running
from datalocal.ledger.checkpoints import CheckpointBook, world_of
from datalocal.ledger.lineage import (
    finished_tasks,
    latest_checkpoint,
    latest_progress,
    latest_sha256,
    next_launch,
    stages_finished,
)
from datalocal.ledger.run_dir import RunDir, State
from datalocal.placement.model import Plan
from datalocal.placement.policies import check
from datalocal.placement.registry import POLICIES, policy_named
from datalocal.report.build import build
from datalocal.report.page import render as render_page
from datalocal.spec.cluster import Cluster, load_cluster
from datalocal.spec.job import JobSpec, load_job
from datalocal.storage.client import Store
from datalocal.storage.counting import ByteCounter
from datalocal.storage.opening import open_store
from datalocal.storage.sink import Sink
from datalocal.tasks.code import pack
from datalocal.tasks.model import Wiring

log = logging.getLogger("datalocal.run")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """What `datalocal submit` was asked for."""

    job_file: Path
    cluster_file: Path
    home: Path
    policies: tuple[str, ...] = ()
    """Arms of the run; empty: those that the job names."""
    overrides: tuple[str, ...] = ()
    seed: int | None = None
    executor: str = "dask"
    run_id: str | None = None
    rates: Rates | None = None
    """What the cluster can do, for the seconds that the report sets beside what was measured."""


def prepare(request: RunRequest) -> RunDir:
    """Check everything that can be checked without a cluster and write the run directory. Nothing has started yet.

    Raises SpecError, PlacementError (unknown policy), ClusterError (the client's token or certificate is not there),
    DatalocalError (the run id is taken).
    """
    overrides = request.overrides + ((f"seed={request.seed}",) if request.seed is not None else ())
    job = load_job(request.job_file, overrides)
    cluster = load_cluster(request.cluster_file)
    policies = request.policies or job.policies
    for name in policies:
        policy_named(name)
    if len(set(policies)) != len(policies):
        raise SpecError(
            str(request.job_file), "policies", f"given twice: {', '.join(policies)}", "an arm runs once per run"
        )
    if request.executor == "inline" and job.train and job.train.script:
        raise SpecError(
            str(request.job_file), "train.script", "a script needs processes of its own", "use --executor dask"
        )
    if request.executor == "inline" and cluster.kind == "existing":
        raise SpecError(
            str(request.cluster_file),
            "kind",
            "the in-process executor has no part in a cluster of others",
            "leave it out",
        )
    if cluster.kind == "existing":  # its secrets are files, and may be missing where the user stands
        existing.read_token(cluster)
        existing.own_tls(cluster, "client")
    copies = (job.train.checkpoint_replication if job.train else None) or 0
    if copies > len(cluster.storage_nodes):
        raise SpecError(
            str(request.job_file),
            "train.checkpoint_replication",
            f"{copies} copies need as many storage nodes, {cluster.name} has {len(cluster.storage_nodes)}",
        )
    code, packed = _pack(job, request.job_file)
    started = time.time()
    identity = (
        request.run_id or f"{job.name}-{time.strftime('%Y%m%d-%H%M%S', time.localtime(started))}-{secrets.token_hex(2)}"
    )
    manifest = {
        "schema": "datalocal.run/1",
        "id": identity,
        "job": job.model_dump(mode="json"),
        "job_file": str(request.job_file.resolve()),
        "cluster": cluster.model_dump(mode="json"),
        "policies": list(policies),
        "seed": job.seed,
        "executor": request.executor,
        "version": datalocal.__version__,
        "python": platform.python_version(),
        "started": started,
        "code": code,
        "rates": request.rates.to_json() if request.rates is not None else None,
        "frozen": _frozen(job, request.job_file),
    }
    run = RunDir.create(request.home, identity, manifest)
    if packed:
        run.store_code(code, packed)
    return run


def _pack(job: JobSpec, job_file: Path) -> tuple[str, bytes]:
    """The job's folder as a content-hashed archive; nothing when the job uses no code of its own."""
    folder = job_file.resolve().parent
    modules = [target.split(":")[0].split(".")[0] for target in job.targets]
    own = [module for module in modules if (folder / module).is_dir() or (folder / f"{module}.py").is_file()]
    if not own and not job.files:
        return "", b""
    return pack(folder, job.code_limit_bytes)


def _frozen(job: JobSpec, job_file: Path) -> list[dict[str, Any]]:
    """The frozen stages of the job's pipeline, built and tried out: what cannot be built is refused before anything starts."""
    if job.pipeline is None or job.train is None:
        return []
    from datalocal.tasks.frozen import check_model, examine  # torch takes seconds: only pipelines pay for it here

    folder = job_file.resolve().parent
    stages = examine(job.pipeline, folder)
    check_model(job.pipeline, stages, job.train, folder)
    return [stage.to_json() for stage in stages]


def resume(path: Path) -> RunDir:
    """A run that stopped before its end, ready to be spawned again. Raises DatalocalError when it runs or is complete."""
    run = RunDir.open(path)
    state = run.state["state"]
    if state == "running":
        raise DatalocalError(
            f"run {run.id} is running", f"follow it with `datalocal logs -f {run.id}`, or cancel it first"
        )
    if state == "completed":
        raise DatalocalError(
            f"run {run.id} is complete", f"see `datalocal report {run.id}`; submit the job again for a new run"
        )
    return run


def spawn(run: RunDir) -> int:
    """Start the run process in a session of its own (a closed terminal does not end it) and return its pid."""
    with run.log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "datalocal.runner", str(run.path)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
    run.set_state("running", pid=process.pid)
    return process.pid


def execute(run: RunDir) -> int:
    """The run process: all arms, one after the other, then the report. Returns the exit code of the run."""
    cancelled = threading.Event()
    restore = _on_signals(cancelled)
    run.set_state("running", pid=os.getpid())
    error: DatalocalError | None = None
    try:
        _run_arms(run, cancelled)
    except DatalocalError as caught:
        error = caught
    except Exception as caught:  # a bug of ours: the run says so, its log holds the trace
        log.exception("the run failed")
        error = DatalocalError(f"the run failed: {type(caught).__name__}: {caught}", f"the trace is in {run.log}")
    finally:
        restore()
    state: State = "completed" if error is None else "cancelled" if isinstance(error, RunCancelled) else "failed"
    if error is not None:
        log.error("%s", error)
    try:
        _report(run, state)
    except Exception as caught:  # what was measured is in the records: the report can be made again from them
        log.exception("the report could not be written")
        error = error or DatalocalError(f"the report could not be written: {caught}", f"the trace is in {run.log}")
        state = "failed" if state == "completed" else state
    run.set_state(state, error=str(error) if error else None, exit_code=error.exit_code if error else 0)
    if state == "completed":
        run.mark_completed()
    return error.exit_code if error else 0


def _run_arms(run: RunDir, cancelled: threading.Event) -> None:
    manifest = run.manifest
    job, cluster = JobSpec.model_validate(manifest["job"]), Cluster.model_validate(manifest["cluster"])
    if job.train is not None and manifest["executor"] == "dask":
        threading.Thread(target=_import_torch, daemon=True).start()  # takes seconds; the first gang needs it
    failed: DatalocalError | None = None
    with _executor(run, cluster) as executor:
        run.write_hosts({node: told.host for node, told in executor.facts().items()})
        handler = _Handler(run)
        code = {manifest["code"]: run.code_path(manifest["code"])} if manifest["code"] else {}
        sink = Sink(token=executor.token, code=code, handler=handler, host=executor.address, tls=executor.tls)
        try:
            for policy in manifest["policies"]:
                if run.arm_state(policy) == "completed":
                    continue
                arm = _arm(run, policy, job, cluster, executor, sink.location, cancelled)
                handler.arms[policy] = arm
                try:
                    _run_arm(run, arm)
                except (RunCancelled, ClusterError) as error:
                    _finish_arm(run, policy, "cancelled" if isinstance(error, RunCancelled) else "failed", str(error))
                    raise
                except DatalocalError as error:
                    log.error("%s: %s", policy, error)
                    _finish_arm(run, policy, "failed", str(error))
                    failed = failed or error
        finally:
            sink.close()
    if failed is not None:
        raise failed


def _run_arm(run: RunDir, arm: Arm) -> None:
    """One arm: catalogue, place, check, then stage after stage."""
    log.info("%s: begins", arm.policy)
    arm.record("witnesses", stage="", nodes=dict(arm.executor.witnesses()))
    catalog = catalogue(arm, arm.job.dataset, "catalog")
    arm.record("witnesses", stage="catalog", nodes=dict(arm.executor.witnesses()))
    cut_pipeline(arm, catalog, run.manifest.get("frozen", []), run.events(arm.policy))
    plan = run.read_plan(arm.policy)
    if plan is None:
        alive = set(arm.executor.facts())
        living = arm.cluster.model_copy(
            update={"nodes": tuple(node for node in arm.cluster.nodes if node.name in alive)}
        )
        plan = POLICIES[arm.policy](arm.job, catalog, living)
        check(plan, arm.job, catalog, living)
        run.write_plan(arm.policy, plan)
    with contextlib.closing(Foresight.begin(run.manifest, arm.job, catalog, run.estimates())) as foresight:
        _run_stages(run, arm, plan, catalog)
        _tidy(arm, plan)
        run.write_estimate(arm.policy, foresight.foretell(plan, catalog, arm.cluster, run.events(arm.policy)))
    not_local = [
        {"shard": assignment.shard, "reason": assignment.reason, "stage": stage.name}
        for stage in plan.stages
        if stage.kind != "staging"
        for assignment in stage.assignments
        if assignment.reason
    ]
    _finish_arm(run, arm.policy, "completed", None, not_local)


def _run_stages(run: RunDir, arm: Arm, plan: Plan, catalog: Catalog) -> None:
    """Those that are not done yet, one after the other."""
    events = list(run.events(arm.policy))
    done = stages_finished(events)
    for stage in plan.stages:
        if stage.name in done:
            continue
        source = catalogue_of(arm, stage, catalog)
        run_stage(
            arm,
            stage,
            source,
            finished_tasks(events, stage.name),
            _checkpoints(run, arm, stage.name),
            next_launch(events, stage.name),
        )
        arm.record("witnesses", stage=stage.name, nodes=dict(arm.executor.witnesses()))
        log.info("%s: %s is done", arm.policy, stage.name)


def _tidy(arm: Arm, plan: Plan) -> None:
    """Delete the arm's scratch copies; results and checkpoints stay."""
    staging = [stage for stage in plan.stages if stage.kind == "staging"]
    if not staging:
        return
    store = arm.open_store(ByteCounter())
    try:
        for node in {assignment.node for stage in staging for assignment in stage.assignments}:
            with contextlib.suppress(DatalocalError):  # a node that is away keeps its scratch until `cluster down`
                store.delete(node, staged_dataset(arm))
    finally:
        store.close()


def _finish_arm(
    run: RunDir, policy: str, state: str, error: str | None, not_local: list[dict[str, str]] | None = None
) -> None:
    run.append(policy, {"type": "arm_finished", "state": state, "error": error, "not_local": not_local or []})


def _checkpoints(run: RunDir, arm: Arm, stage: str) -> Checkpoints:
    return Checkpoints(
        progress=lambda: latest_progress(run.events(arm.policy), stage),
        name=lambda: latest_checkpoint(run.events(arm.policy), stage),
        sha256=lambda: latest_sha256(run.events(arm.policy), stage),
    )


def _arm(
    run: RunDir,
    policy: str,
    job: JobSpec,
    cluster: Cluster,
    executor: Executor,
    sink: str,
    cancelled: threading.Event,
) -> Arm:
    stores = {node: facts.store for node, facts in executor.facts().items()}
    token, tls = executor.token, executor.tls

    def record(type_: str, /, **content: Any) -> None:
        run.append(policy, {"type": type_, **content})

    def store_of_head(counter: ByteCounter) -> Store:
        return open_store(cluster, node="head", root=None, stores=stores, token=token, counter=counter, tls=tls)

    wiring = Wiring(run=run.id, cluster=cluster, stores=stores, sink=sink, code=run.manifest["code"])
    return Arm(
        policy=policy,
        job=job,
        cluster=cluster,
        executor=executor,
        wiring=wiring,
        record=record,
        open_store=store_of_head,
        cancelled=cancelled,
    )


class _Handler:
    """What nodes send to the run process goes straight to the run directory. Called from the sink's threads."""

    def __init__(self, run: RunDir) -> None:
        self._run = run
        self._book = CheckpointBook(lambda arm, launch: world_of(run.events(arm), launch))
        self.arms: dict[str, Arm] = {}

    def log(self, arm: str, task: str, text: str) -> None:
        with self._run.log_path(arm, task).open("a", encoding="utf-8") as file:
            file.write(text if text.endswith("\n") else text + "\n")

    def record(self, kind: str, content: dict[str, Any]) -> None:
        arm = content["arm"]
        if kind == "failure":
            self.arms[arm].failures.append(content)
        self._run.append(arm, {"type": kind, **content})
        if kind == "samples" and content.get("checkpoint"):
            self._complete(arm, self._book.line(arm, content))

    def put_checkpoint(self, arm: str, name: str, content: pa.Buffer) -> None:
        self._run.store_checkpoint(arm, name, content)
        self._complete(arm, self._book.blob(arm, name, content.size, hashlib.sha256(content).hexdigest()))

    def _complete(self, arm: str, checkpoint: dict[str, Any] | None) -> None:
        if checkpoint is not None:
            self._run.append(arm, {"type": "checkpoint", **checkpoint})

    def get_checkpoint(self, arm: str, name: str) -> pa.Buffer:
        return self._run.read_checkpoint(arm, name)


@contextlib.contextmanager
def _executor(run: RunDir, cluster: Cluster) -> Iterator[Executor]:
    """The executor that the run asks for, on a cluster that is up (or up for the while)."""
    home = run.path.parent
    if run.manifest["executor"] == "inline":
        from datalocal.execution.inline import InlineExecutor

        if embedded.find(home, cluster.name) is not None:
            raise ClusterError(
                f"the cluster {cluster.name!r} is up, and the in-process executor opens its folders itself",
                f"take it down first: datalocal cluster down {cluster.name}",
            )
        roots = {node.name: embedded.node_root(home, cluster.name, node.name) for node in cluster.nodes}
        inline = InlineExecutor(cluster=cluster, roots=roots, token=secrets.token_urlsafe(32))
        try:
            yield inline
        finally:
            inline.close()
        return
    from datalocal.execution.dask import DaskExecutor

    with running(cluster, home) as handle:
        executor = DaskExecutor(
            cluster=cluster, scheduler=handle.scheduler, run=run.id, token=handle.token, tls=handle.tls
        )
        try:
            yield executor
        finally:
            executor.close()


def _report(run: RunDir, state: State) -> None:
    """Write the report, also of a run that failed: what was measured until then is worth reading."""
    report = build(run.manifest, run.all_events(), state=state, estimates=run.estimates())
    run.write_report(report)
    run.write_page(render_page(report))


def _import_torch() -> None:
    with contextlib.suppress(ImportError):  # told where it is needed, with the node's name
        import torch.distributed  # noqa: F401


def _on_signals(cancelled: threading.Event) -> Any:
    """Ctrl-C and SIGTERM cancel the run in order; a closed terminal does not touch it."""
    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, lambda *_: cancelled.set()),
        signal.SIGTERM: signal.signal(signal.SIGTERM, lambda *_: cancelled.set()),
        signal.SIGHUP: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    }

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    return restore


def main() -> None:
    """Entry of the run process."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    status = execute(RunDir.open(Path(sys.argv[1])))
    logging.shutdown()
    os._exit(status)  # everything is written and closed; tearing torch down would keep the terminal waiting


if __name__ == "__main__":
    main()
