"""`datalocal logs RUN`."""

from __future__ import annotations

import time
from pathlib import Path

import click

from datalocal.cli.find import find_run
from datalocal.errors import DatalocalError


@click.command("logs", short_help="Show the log of a run or of one of its tasks.")
@click.argument("run", default="last")
@click.option("--arm", help="Show the logs of this arm's tasks.")
@click.option("--task", help="Only this task of the arm.")
@click.option("-f", "--follow", is_flag=True, help="Go on until the run ends.")
def command(run: str, arm: str | None, task: str | None, follow: bool) -> None:
    """Show the log of RUN, or with --arm (and --task) those of its tasks and ranks."""
    found = find_run(run)
    if task is not None and arm is None:
        arms = found.manifest["policies"]
        if len(arms) > 1:
            raise click.UsageError(f"say of which arm: --arm {'|'.join(arms)}")
        arm = arms[0]
    if arm is None:
        files = [found.log]
    elif task is not None:
        files = [found.log_path(arm, task)]
        if not files[0].is_file():
            known = sorted(path.stem for path in files[0].parent.glob("*.log"))
            raise DatalocalError(
                f"arm {arm} of {found.id} has no log of {task!r}", f"there are: {', '.join(known) or 'none'}"
            )
    else:
        if arm not in found.manifest["policies"]:
            raise DatalocalError(f"{found.id} has no arm {arm!r}", f"its arms: {', '.join(found.manifest['policies'])}")
        files = sorted((found.path / "arms" / arm / "logs").glob("*.log"))
    offsets = dict.fromkeys(files, 0)
    while True:
        running = found.state["state"] == "running"
        for file in files:
            offsets[file] = _print_from(file, offsets[file], name=len(files) > 1)
        if not follow or not running:
            return
        time.sleep(0.2)


def _print_from(file: Path, offset: int, *, name: bool) -> int:
    try:
        with file.open("rb") as content:
            content.seek(offset)
            text = content.read()
    except FileNotFoundError:
        return offset
    for line in text.decode(errors="replace").splitlines():
        click.echo(f"{file.stem}: {line}" if name else line)
    return offset + len(text)
