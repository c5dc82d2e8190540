"""`datalocal report RUN`."""

from __future__ import annotations

from pathlib import Path

import click

from datalocal.cli.find import find_run, load_report
from datalocal.cli.options import echo_json, json_option


@click.command("report", short_help="Show the report of a run, or write its page.")
@click.argument("run", default="last")
@json_option
@click.option("--html", "page", type=click.Path(dir_okay=False, path_type=Path), help="Write the page here.")
def command(run: str, as_json: bool, page: Path | None) -> None:
    """Show the report of RUN; also of one that failed or still runs. The JSON is a contract: keys are added, never renamed."""
    found = find_run(run)
    report = load_report(found)
    if page is not None:
        from datalocal.report.page import render as render_page

        page.write_text(render_page(report), encoding="utf-8")
        click.echo(f"written: {page}", err=True)
    if as_json:
        echo_json(report)
    elif page is None:
        from rich.console import Console

        from datalocal.report.text import render

        Console().print(render(report))
        if (found.path / "report.html").is_file():
            click.echo(f"page: {found.path / 'report.html'}")
