"""`datalocal status RUN`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from datalocal.cli.find import find_run
from datalocal.cli.options import echo_json, json_option

if TYPE_CHECKING:
    from datalocal.ledger.run_dir import RunDir


@click.command("status", short_help="Say how far a run is.")
@click.argument("run", default="last")
@json_option
def command(run: str, as_json: bool) -> None:
    """Say how far RUN is (an id, the beginning of one, a path, or `last`)."""
    found = find_run(run)
    summary = summarise(found)
    if as_json:
        echo_json(summary)
        return
    click.echo(
        f"{summary['id']}: {summary['state']}"
        + (f" (process {summary['pid']})" if summary["state"] == "running" else "")
    )
    for arm in summary["arms"]:
        stages = ", ".join(f"{stage['name']} {stage['state']}" for stage in arm["stages"]) or "not begun"
        click.echo(f"  {arm['policy']}: {stages}")
    if summary["error"]:
        click.echo(summary["error"])
    click.echo(f"  {found.path}")


def summarise(run: RunDir) -> dict[str, Any]:
    """The run in a few values, from its directory alone."""
    state = run.state
    arms = []
    for policy in run.manifest["policies"]:
        stages: dict[str, dict[str, Any]] = {}
        for event in run.events(policy):
            match event["type"]:
                case "stage_started":
                    stages[event["stage"]] = {
                        "name": event["stage"],
                        "state": "running",
                        "shards": event["shards"],
                        "tasks_done": 0,
                    }
                case "task" if event["record"]["stage"] in stages:
                    stages[event["record"]["stage"]]["tasks_done"] += 1
                case "progress" if event["stage"] in stages:
                    stages[event["stage"]] |= {key: event[key] for key in ("epoch", "step", "steps", "loss")}
                case "stage_finished":
                    stages[event["stage"]] |= {"state": "completed", "seconds": event["seconds"]}
        ended = run.arm_state(policy)
        if state["state"] != "running":
            for stage in stages.values():
                stage["state"] = stage["state"] if stage["state"] == "completed" else state["state"]
        arms.append({"policy": policy, "state": ended, "stages": list(stages.values())})
    return {
        "id": run.id,
        "job": run.manifest["job"]["name"],
        "state": state["state"],
        "pid": state.get("pid"),
        "error": state.get("error"),
        "started": run.manifest["started"],
        "path": str(run.path),
        "arms": arms,
    }
