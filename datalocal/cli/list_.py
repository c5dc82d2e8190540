"""`datalocal list`."""

from __future__ import annotations

import click

from datalocal.cli.find import home
from datalocal.cli.options import echo_json, json_option


@click.command("list", short_help="List the runs.")
@json_option
def command(as_json: bool) -> None:
    """List the runs in $DATALOCAL_HOME, oldest first."""
    import datetime

    from rich.console import Console
    from rich.table import Table

    from datalocal.ledger.run_dir import all_runs

    runs = [
        {
            "id": run.id,
            "job": run.manifest["job"]["name"],
            "state": run.state["state"],
            "started": run.manifest["started"],
            "arms": run.manifest["policies"],
        }
        for run in all_runs(home())
    ]
    if as_json:
        echo_json({"runs": runs})
        return
    if not runs:
        click.echo(f"there is no run in {home()}; start one: datalocal submit JOB")
        return
    table = Table()
    for column in ("run", "job", "state", "started", "arms"):
        table.add_column(column)
    for run in runs:
        started = datetime.datetime.fromtimestamp(run["started"]).strftime("%Y-%m-%d %H:%M:%S")
        table.add_row(run["id"], run["job"], run["state"], started, ", ".join(run["arms"]))
    console = Console()
    if not console.is_terminal:
        console.width = 200  # an id that is cut is of no use to a script
    console.print(table)
