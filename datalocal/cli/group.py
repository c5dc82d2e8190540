"""The command group: commands are imported on demand, errors become one message and the right exit code."""

from __future__ import annotations

import errno
import importlib
from typing import IO, Any

import click

from datalocal.errors import DatalocalError

EXIT_CODES = """\b
Exit codes:
    0  ok
    1  the run failed
    2  bad input: an option, a file, a data set, a job that cannot be placed
    3  cluster trouble: not up, not reachable, another version, a port in use
  130  cancelled (Ctrl-C)"""


class Message(click.ClickException):
    """An error on its way to the person who runs the command: one message on stderr, no traceback."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the message to stderr."""
        click.echo(f"{click.style('Error:', fg='red', bold=True)} {self.format_message()}", file=file, err=file is None)


class DatalocalGroup(click.Group):
    """A group whose command `x` is `datalocal.cli.x:command`, imported when it is asked for."""

    def __init__(self, *args: Any, commands_in: tuple[str, ...] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._names = commands_in

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order of the story, not of the alphabet."""
        return list(self._names)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported now."""
        if cmd_name not in self._names:
            return None
        command: click.Command = importlib.import_module(f"datalocal.cli.{cmd_name}").command
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command; what goes wrong is told in one message (with `--debug`: with its traceback)."""
        try:
            return super().invoke(ctx)
        except (DatalocalError, KeyboardInterrupt, OSError) as error:
            if ctx.params.get("debug"):
                raise
            raise _told(error) from None


def _told(error: DatalocalError | KeyboardInterrupt | OSError) -> Exception:
    if isinstance(error, DatalocalError):
        return Message(str(error), error.exit_code)
    if isinstance(error, KeyboardInterrupt):
        return Message("cancelled", 130)
    if error.errno == errno.EPIPE or error.filename is None:  # click ends quietly where the reader of a pipe is gone
        return error
    return Message(f"{error.filename}: {error.strerror}", 2)
