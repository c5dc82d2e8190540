"""`datalocal cancel RUN`."""

from __future__ import annotations

import click

from datalocal.cli.find import find_run
from datalocal.errors import DatalocalError


@click.command("cancel", short_help="Cancel a run; it can be resumed.")
@click.argument("run", default="last")
def command(run: str) -> int:
    """Cancel RUN and wait until nothing of it runs any more. `submit --resume` goes on with it."""
    from datalocal.cli.submit_ import cancel

    found = find_run(run)
    if found.state["state"] != "running":
        raise DatalocalError(f"{found.id} does not run: it is {found.state['state']}")
    state = cancel(found)
    click.echo(f"{found.id} is {state}; go on with: datalocal submit --resume {found.id}")
    return 0
