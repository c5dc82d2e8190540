"""Cut an arm's pipeline before it is placed: what lies before the cut becomes its preprocess stage."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from datalocal.catalog.model import Catalog
from datalocal.estimate.cuts import Stage
from datalocal.execution.arm import Arm
from datalocal.spec.job import at_cut
from datalocal.storage.counting import ByteCounter
from datalocal.tasks.cut_sizes import tabulate
from datalocal.tasks.model import Cut


def cut_pipeline(
    arm: Arm, catalog: Catalog, stages: Sequence[Mapping[str, Any]], events: Iterable[Mapping[str, Any]]
) -> None:
    """Cut the arm's job where it says, or where it ships the fewest bytes; an arm without a pipeline stays as it is.

    `stages` are the frozen stages as `prepare` examined them. An arm that is resumed keeps the cut of its `events`.
    """
    if arm.job.pipeline is None:
        return
    known = [Stage.from_json(stage) for stage in stages]
    chosen = next((event["table"]["chosen"] for event in events if event["type"] == "cut"), None)
    if chosen is None:
        counter = ByteCounter()
        store = arm.open_store(counter)
        try:
            table = tabulate(arm.job, known, catalog, store)
        finally:
            store.close()
        chosen = table.chosen
        arm.record("bytes", stage="catalog", rows=[row.to_json() for row in counter.rows()])
        arm.record("cut", table=table.to_json(), stages=[stage.to_json() for stage in known])
    arm.job = at_cut(arm.job, chosen)
    assert arm.job.pipeline is not None
    arm.cut = Cut(pipeline=arm.job.pipeline, at=chosen, sha256={stage.name: stage.sha256 for stage in known})
    arm.row_bytes = catalog.total_bytes / max(catalog.total_rows, 1)
