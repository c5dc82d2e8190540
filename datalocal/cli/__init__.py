"""The command line: one file per command, and the only room that prints, prompts or exits.

Importing this room imports click and nothing else; a command imports what it needs when it runs, so that `--help` is quick.
"""

from __future__ import annotations

import click

import datalocal
from datalocal.cli.group import EXIT_CODES, DatalocalGroup

COMMANDS = (
    "demo",
    "cluster",
    "ingest",
    "catalog",
    "plan",
    "submit",
    "list",
    "status",
    "logs",
    "cancel",
    "report",
    "compare",
    "doctor",
)
"""In the order in which a new user meets them. Command `x` is `datalocal.cli.x:command`."""


@click.group(
    cls=DatalocalGroup,
    commands_in=COMMANDS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog=EXIT_CODES,
)
@click.option("--debug", is_flag=True, help="Show the Python traceback of an error.")
@click.version_option(datalocal.__version__, prog_name="datalocal")
def main(debug: bool) -> None:
    """Run image preprocessing and training on the nodes that hold the images, and account for every byte and joule.

    Start with `datalocal demo`. Runs and clusters live in the folder $DATALOCAL_HOME (default: runs/ where you stand).
    RUN is a run's id, the beginning of one, its directory, or `last`.
    """
