"""`datalocal submit JOB`."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import click

from datalocal.cli.find import cluster_path, find_run, home, job_path, load_report
from datalocal.cli.options import cluster_option, echo_json, json_option

if TYPE_CHECKING:
    from datalocal.ledger.run_dir import RunDir
    from datalocal.runner import RunRequest


@click.command("submit", short_help="Run a job under one or several policies, and follow it.")
@click.argument("job", required=False)
@cluster_option
@click.option(
    "--policy", "policies", multiple=True, help="Placement policy; several make arms of one run. Default: the job's."
)
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key of the job, e.g. train.epochs=5."
)
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), help="Seed of the run. Default: the job's.")
@click.option(
    "--executor",
    type=click.Choice(["dask", "inline"]),
    default="dask",
    show_default=True,
    help="inline: all in one process, for debugging.",
)
@click.option("--run-id", help="Name of the run. Default: the job's name, the time and four letters.")
@click.option("--resume", metavar="RUN", help="Go on with a run that was cancelled or failed, instead of starting one.")
@click.option(
    "--repeat",
    type=click.IntRange(2),
    metavar="N",
    help="Run it N times, the policies in another order each time, and compare: for statements about seconds or joules.",
)
@click.option(
    "--calibrate",
    metavar="RUN",
    help="Fit rates to this run: the report sets seconds foretold by them beside the measured.",
)
@click.option("--detach", is_flag=True, help="Return when the run has started.")
@json_option
def command(
    job: str | None,
    cluster_file: str | None,
    policies: tuple[str, ...],
    overrides: tuple[str, ...],
    seed: int | None,
    executor: str,
    run_id: str | None,
    resume: str | None,
    repeat: int | None,
    calibrate: str | None,
    detach: bool,
    as_json: bool,
) -> int:
    """Run JOB (a file, or the name of a shipped job) and follow it to its end.

    Everything that can be checked is checked before anything starts. Ctrl-C cancels the run; a closed terminal does not.
    """
    from datalocal import runner
    from datalocal.cli.plan_ import rates_of
    from datalocal.spec.cluster import load_cluster

    if (job is None) == (resume is None):
        raise click.UsageError("give either a JOB, or --resume RUN")
    if resume is not None:
        if policies or overrides or seed is not None or run_id or repeat is not None or calibrate is not None:
            raise click.UsageError(
                "--resume goes on with a run as it was submitted: leave --policy, --set, --seed, --run-id, --repeat and "
                "--calibrate out"
            )
        return start_and_follow(runner.resume(find_run(resume).path), detach=detach, as_json=as_json)
    assert job is not None
    if repeat is not None and detach:
        raise click.UsageError("--repeat compares finished runs: leave --detach out")
    file = cluster_path(cluster_file)
    request = runner.RunRequest(
        job_file=job_path(job),
        cluster_file=file,
        home=home(),
        policies=policies,
        overrides=overrides,
        seed=seed,
        executor=executor,
        run_id=run_id,
        rates=rates_of(load_cluster(file), str(file), calibrate),
    )
    if repeat is not None:
        return _repeated(request, repeat, as_json=as_json)
    return start_and_follow(runner.prepare(request), detach=detach, as_json=as_json)


def _repeated(request: RunRequest, times: int, *, as_json: bool) -> int:
    """The same job `times` times, one run after the other, and their comparison. Stops at the first that does not complete."""
    from rich.console import Console

    from datalocal import runner
    from datalocal.report.compare import compare, render
    from datalocal.spec.job import load_job

    policies = request.policies or load_job(request.job_file, request.overrides).policies
    reports = []
    for number in range(times):
        turn = number % len(policies)  # whoever comes first finds other caches than who comes last
        run = runner.prepare(
            dataclasses.replace(
                request,
                policies=(*policies[turn:], *policies[:turn]),
                run_id=f"{request.run_id}-{number + 1}" if request.run_id else None,
            )
        )
        _start(run, f" ({number + 1} of {times})")
        if _follow(run) != "completed":
            return _told(run)
        reports.append(load_report(run))
    comparison = compare(reports)
    if as_json:
        echo_json(comparison)
    else:
        Console().print(render(comparison))
    return 0


def start_and_follow(run: RunDir, *, detach: bool, as_json: bool) -> int:
    """Start the run's process, follow it, and show what came of it. Returns the exit code."""
    pid = _start(run)
    if detach:
        if as_json:
            echo_json({"run": run.id, "pid": pid, "path": str(run.path)})
        else:
            click.echo(f"follow it: datalocal logs -f {run.id}\nhow far it is: datalocal status {run.id}", err=True)
        return 0
    state = _follow(run)
    show(run, as_json=as_json)
    return 0 if state == "completed" else _told(run)


def _start(run: RunDir, remark: str = "") -> int:
    from datalocal import runner

    pid = runner.spawn(run)
    click.echo(f"run {run.id} (process {pid}){remark}", err=True)
    return pid


def _follow(run: RunDir) -> str:
    """Follow a run to its end; Ctrl-C cancels it. Returns its state."""
    import psutil

    from datalocal.cli.follow import follow

    pid = run.state["pid"]
    before = signal.signal(
        signal.SIGTERM, _interrupt
    )  # a plain `kill` cancels as Ctrl-C does; a closed terminal does not
    try:
        state = follow(run)
    except KeyboardInterrupt:
        state = cancel(run)
    finally:
        signal.signal(signal.SIGTERM, before)
    with contextlib.suppress(psutil.Error):
        psutil.Process(pid).wait(10)  # its last line is written: it is about to be gone
    return state


def _told(run: RunDir) -> int:
    """Say why a run did not complete. Returns the exit code."""
    from datalocal.errors import DatalocalError

    error = run.state["error"] or "no reason was given"
    if run.state["state"] == "cancelled":
        click.echo(f"cancelled; go on with: datalocal submit --resume {run.id}", err=True)
    else:
        raised = DatalocalError(error)
        click.echo(f"{click.style('error:', fg='red', bold=True)} {raised}", err=True)
    return int(run.state.get("exit_code") or 1)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def cancel(run: RunDir) -> str:
    """Ask the run's process to end and wait until it is gone; returns the run's state."""
    import psutil

    click.echo(f"cancelling {run.id} …", err=True)
    pid = run.state["pid"]
    try:
        process = psutil.Process(pid)
        if run.state["state"] == "running":
            os.kill(pid, signal.SIGINT)
        process.wait(60)
    except (psutil.NoSuchProcess, ProcessLookupError):
        pass
    except psutil.TimeoutExpired:
        click.echo(f"process {pid} does not end; its log is {run.log}", err=True)
    state: str = run.state["state"]
    return state


def show(run: RunDir, *, as_json: bool) -> None:
    """The report: JSON, or for a terminal with the place of the page."""
    report = load_report(run)
    if as_json:
        echo_json(report)
        return
    if run.state["state"] == "failed" and not any(arm["stages"] for arm in report["arms"]):
        return  # a table of nothing would push the reason out of sight
    from rich.console import Console

    from datalocal.report.text import render

    Console().print(render(report))
    page = Path(run.path) / "report.html"
    if page.is_file():
        click.echo(f"page: {page}")
