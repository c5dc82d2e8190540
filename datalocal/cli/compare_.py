"""`datalocal compare RUN [RUN...]`."""

from __future__ import annotations

import click

from datalocal.cli.find import find_run, load_report
from datalocal.cli.options import echo_json, json_option


@click.command("compare", short_help="Set finished runs of the same job side by side.")
@click.argument("runs", nargs=-1, required=True)
@json_option
def command(runs: tuple[str, ...], as_json: bool) -> None:
    """Set the arms of finished RUNS of the same job side by side; medians and spread where a policy occurs more than once."""
    from datalocal.report.compare import compare, render

    result = compare([load_report(find_run(run)) for run in runs])
    if as_json:
        echo_json(result)
    else:
        from rich.console import Console

        Console().print(render(result))
