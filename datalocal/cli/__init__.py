"""The command line: one file per command, no logic in it; the only place that prints, prompts or exits."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import click

COMMANDS = {
    "demo": "The whole story on sample photographs, in under two minutes.",
    "cluster": "Bring a cluster up or down, or say what is up.",
    "head": "Run the head of an existing cluster: dask's scheduler and dashboard.",
    "worker": "Run one node of an existing cluster, on its host.",
    "ingest": "Write images into the cluster's store, as shards with replicas.",
    "catalog": "Show a data set: shards, replicas, labels, and what can be worked on locally.",
    "plan": "Show what every policy would do, before anything runs.",
    "simulate": "Compare placements on a cluster that need not exist, with their bound.",
    "submit": "Run a job under one or several policies, and follow it.",
    "list": "List the runs.",
    "status": "Say how far a run is.",
    "logs": "Show the log of a run or of one of its tasks.",
    "cancel": "Cancel a run; it can be resumed.",
    "report": "Show the report of a run, or write its page.",
    "compare": "Set finished runs of the same job side by side.",
    "doctor": "Check host, disk, ports, GPUs, meters and nodes, and say how to mend what is wrong.",
}

EPILOG = (
    "Exit codes: 0 done, 1 the run failed, 2 bad input (nothing was started), 3 trouble with the cluster, 130 cancelled. "
    "Runs and clusters live under $DATALOCAL_HOME (default: runs/ where you stand)."
)


class LazyGroup(click.Group):
    """Imports a command's module when the command is used: `--help` must not wait for pyarrow, dask or torch."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order of a user's day, not of the alphabet."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command object of `datalocal.cli.<name>`."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"datalocal.cli.{cmd_name}_")
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with the near command in the message."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            if near:
                raise click.UsageError(f"{error.message} Did you mean {near[0]!r}?", ctx) from None
            raise

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Without importing any of them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="datalocal")
@click.option("--debug", is_flag=True, help="Show the trace of an error, not only its message.")
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:
    """Run image preprocessing and training on the storage nodes that hold the shards, and report the bytes that moved and
    the joules used, next to the same job on a central cluster."""
    ctx.obj = {"debug": debug}


def main(arguments: list[str] | None = None) -> Any:
    """Entry point. Errors for people come as one message; their exit code is the exception's."""
    from datalocal.errors import DatalocalError

    try:
        result = cli.main(args=arguments, prog_name="datalocal", standalone_mode=False)
    except click.exceptions.Abort:
        click.echo("stopped", err=True)
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except DatalocalError as error:
        if "--debug" in (arguments if arguments is not None else sys.argv):
            raise
        click.echo(f"{click.style('error:', fg='red', bold=True)} {error}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # `datalocal logs ... | head`
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:
        if "--debug" in (arguments if arguments is not None else sys.argv):
            raise
        click.echo(f"{click.style('error:', fg='red', bold=True)} {error}", err=True)
        sys.exit(1)
    sys.exit(result if isinstance(result, int) else 0)
