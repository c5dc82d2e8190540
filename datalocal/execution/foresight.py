"""What the plan of an arm foretold, from what was known before its stages began; the report sets it beside the figures."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from datalocal.catalog.model import Catalog
from datalocal.errors import DatalocalError
from datalocal.estimate.bytes import estimate
from datalocal.estimate.cost import cost, trains_on
from datalocal.estimate.rates import Rates
from datalocal.ledger.samples import decode_uses
from datalocal.placement.epochs import Mask
from datalocal.placement.model import Plan
from datalocal.spec.cluster import Cluster
from datalocal.spec.job import JobSpec
from datalocal.tasks.train.size import Sizes, SizesInChild, sizes


@dataclass(frozen=True, slots=True, kw_only=True)
class Foresight:
    """One arm's. The sizes of the model are worked out beside the run."""

    job: JobSpec
    rates: Rates | None
    sizes: SizesInChild | Sizes
    warm: frozenset[str]
    """Nodes that trained in an earlier arm."""
    in_process: bool = False
    """The ranks of a gang share one model: nothing is synchronised."""

    @classmethod
    def begin(
        cls, manifest: Mapping[str, Any], job: JobSpec, catalog: Catalog, earlier: Mapping[str, Mapping[str, Any]]
    ) -> Foresight:
        """At the beginning of an arm; `earlier` are the estimates of the arms before it, which have the same model."""
        told = manifest.get("rates")
        return cls(
            job=job,
            rates=Rates.from_json(told) if told else None,
            sizes=_sizes(manifest, job, catalog, earlier),
            in_process=manifest["executor"] == "inline",
            warm=frozenset(name for before in earlier.values() for name in before["trained_on"]),
        )

    def close(self) -> None:
        """Leave no process behind, whatever became of the arm."""
        if isinstance(self.sizes, SizesInChild):
            self.sizes.close()

    def foretell(
        self, plan: Plan, catalog: Catalog, cluster: Cluster, events: Iterable[Mapping[str, Any]]
    ) -> dict[str, Any]:
        """Bytes and seconds of `plan`, as JSON values. Of the arm's `events` only the rows count that were chosen to train."""
        found = self.sizes if isinstance(self.sizes, Sizes) else self.sizes.result()
        gradient_bytes = 0 if self.in_process else found.gradient_bytes
        modelled = estimate(
            plan,
            self.job,
            catalog,
            cluster,
            gradient_bytes=gradient_bytes,
            checkpoint_bytes=found.checkpoint_bytes,
            output_share=self.rates.output_share if self.rates is not None else None,
            training=chosen_rows(catalog, events) if self.job.train is not None else {},
        )
        priced = cost(
            plan,
            self.job,
            catalog,
            modelled,
            self.rates,
            power=cluster.power,
            gradient_bytes=gradient_bytes,
            warm=self.warm,
        )
        return {
            "bytes": [row.to_json() for row in modelled.rows],
            "stages": [stage.to_json() for stage in priced.stages],
            "joules": list(priced.joules),
            "origin": priced.origin,
            "source": self.rates.source if self.rates is not None else "",
            "assumptions": list(modelled.assumptions),
            "sizes": asdict(found),
            "trained_on": sorted(trains_on(plan)),
        }


def _sizes(
    manifest: Mapping[str, Any], job: JobSpec, catalog: Catalog, earlier: Mapping[str, Mapping[str, Any]]
) -> SizesInChild | Sizes:
    if job.train is None or job.train.model is None:
        return Sizes()
    for before in earlier.values():
        return Sizes(**before["sizes"])
    folder = Path(manifest["job_file"]).parent
    if manifest["executor"] == "inline":  # everything of the user's runs in this process then
        with contextlib.suppress(DatalocalError):
            return sizes(job.train, folder, len(catalog.labels))
        return Sizes()
    return SizesInChild(job.train, folder, len(catalog.labels))


def chosen_rows(catalog: Catalog, events: Iterable[Mapping[str, Any]]) -> dict[str, Mask] | None:
    """The rows that the first epoch was to use, by shard key; None where no stage came that far."""
    expected = next((event["expected"] for event in events if event["type"] == "epoch" and event["epoch"] == 0), None)
    if expected is None:
        return None
    rows = dict(zip(catalog.shards, catalog.shard_rows.tolist(), strict=True))
    masks = {key: decode_uses(text) > 0 for key, text in expected.items()}
    return masks if all(len(masks[key]) == rows.get(key) for key in masks) else None
