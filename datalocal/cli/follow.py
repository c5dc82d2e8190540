"""Follow a run through its directory: progress on standard error, for a person or for a log."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from datalocal.ledger.run_dir import RunDir

_LOOK_EVERY_SECONDS = 0.2


@dataclass(slots=True)
class Tail:
    """New whole lines of a growing file of JSON lines."""

    path: Path
    _offset: int = 0

    def new(self) -> Iterator[dict[str, Any]]:
        """Events since the last call; a line that is not finished is left for the next."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                text = file.read()
        except FileNotFoundError:
            return
        whole = text[: text.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                continue


@dataclass(slots=True)
class View:
    """What the events so far mean for a person."""

    progress: Progress
    plain: Console | None
    bars: dict[tuple[str, str], TaskID] = field(default_factory=dict)

    def show(self, arm: str, event: dict[str, Any]) -> None:
        """One event."""
        stage = event.get("stage", "")
        match event["type"]:
            case "stage_started":
                total = event["images_expected"] if event["kind"] != "staging" else event["shards"]
                what = f"{arm}: {stage} on {', '.join(event['nodes'])}"
                self.bars[(arm, stage)] = self.progress.add_task(f"{arm}: {stage}", total=total)
                self._say(what)
            case "task":
                record = event["record"]
                done = record["images_in"] if record["kind"] == "preprocess" else 1
                self._advance((arm, record["stage"]), done)
            case "progress":
                bar = self.bars.get((arm, stage))
                if bar is not None:
                    self.progress.update(
                        bar,
                        description=f"{arm}: {stage}, epoch {event['epoch'] + 1}",
                        completed=event["step"],
                        total=event["steps"],
                    )
            case "launch" if event["launch"] > 0:
                self._note(
                    f"{arm}: {stage} goes on from {event['checkpoint'] or 'the start'} on {', '.join(event['nodes'])}"
                )
            case "replaced":
                self._note(f"{arm}: {event['shard']} goes from {event['from']} to {event['to']}: {event['cause']}")
            case "node_lost":
                self._note(f"{arm}: {event['node']} was lost")
            case "stage_finished":
                bar = self.bars.get((arm, stage))
                if bar is not None:
                    self.progress.update(bar, total=1, completed=1, description=f"{arm}: {stage} done")
                images = f", {event['images']} images" if event["images"] else ""  # staging copies whole shards
                self._say(f"{arm}: {stage} done{images} in {event['seconds']:.1f} s")

    def _advance(self, key: tuple[str, str], amount: int) -> None:
        if key in self.bars:
            self.progress.advance(self.bars[key], amount)

    def _say(self, text: str) -> None:
        if self.plain is not None:
            self.plain.print(text, highlight=False, markup=False)

    def _note(self, text: str) -> None:
        (self.plain or self.progress.console).print(text, highlight=False, markup=False)


def follow(run: RunDir) -> str:
    """Show the run's progress until it ends; returns its state. Ctrl-C comes out as KeyboardInterrupt."""
    console = Console(stderr=True)
    progress = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), console=console
    )
    tails = {arm: Tail(run.path / "arms" / arm / "events.jsonl") for arm in run.manifest["policies"]}
    view = View(progress, None if console.is_terminal else console)
    if console.is_terminal:
        progress.start()
    try:
        while True:
            state: str = run.state["state"]
            for arm, tail in tails.items():
                for event in tail.new():
                    view.show(arm, event)
            if state != "running":
                return state
            time.sleep(_LOOK_EVERY_SECONDS)
    finally:
        progress.stop()
