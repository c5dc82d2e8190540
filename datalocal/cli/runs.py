"""Find the run that a person means."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import TYPE_CHECKING

import click

from datalocal.errors import RequestError

if TYPE_CHECKING:
    from datalocal.ledger.run_dir import RunDir

run_argument = click.argument("run", metavar="RUN")


def find_run(text: str) -> RunDir:
    """The run called `text`: an id, the unique beginning of one, a run directory, or `last`.

    Raises RequestError naming what is near, or the runs that `text` could be.
    """
    from datalocal.launch.embedded import home
    from datalocal.ledger.run_dir import RunDir, all_runs

    base = home()
    for path in (Path(text), base / text):
        if text and (path / "run.json").is_file():
            return RunDir.open(path)
    runs = all_runs(base)
    if text == "last" and runs:
        return runs[-1]
    matching = [run for run in runs if text and run.id.startswith(text)]
    if len(matching) == 1:
        return matching[0]
    if matching:
        raise RequestError(
            f"{text!r} is the beginning of {len(matching)} runs: {_few([run.id for run in matching])}",
            "give more of the id, or `last`",
        )
    if not runs:
        raise RequestError(
            f"there are no runs in {base}",
            "submit a job first, or say where the runs are: DATALOCAL_HOME=FOLDER datalocal ...",
        )
    near = difflib.get_close_matches(text, [run.id for run in runs], n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else "`datalocal list` shows the runs that are there"
    raise RequestError(f"there is no run {text!r} in {base}", hint)


def _few(names: list[str], shown: int = 4) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
