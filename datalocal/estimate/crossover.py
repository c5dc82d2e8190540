"""Where training beside the data stops moving fewer bytes than training centrally: gradients against images. Pure.

A ring all-reduce among m nodes sends 2 (m - 1) G bytes per synchronisation, G being the bytes of one copy of the gradients
(Patarasuk and Yuan, J. Parallel Distrib. Comput. 69, 2009). A central cluster fetches every sample, once or in every epoch. Per
sample, with B samples of all nodes per step and H steps from one synchronisation to the next:

    local    2 (m - 1) G / (B H) + s (1 - l)
    central  s phi

s: bytes of a sample; l: share of the bytes that the nodes hold themselves; phi: how often the central cluster fetches a sample,
per epoch. Local wins when the *locality number* B H s (phi - (1 - l)) / (2 (m - 1) G) is above 1.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from datalocal.catalog.model import Catalog
from datalocal.estimate.bytes import Estimate
from datalocal.placement.model import Plan, Tier
from datalocal.spec.job import JobSpec
from datalocal.units import format_bytes, format_count


@dataclass(frozen=True, slots=True, kw_only=True)
class Gang:
    """What decides the bytes of data-parallel training on `nodes` nodes."""

    nodes: int
    batch: int
    """Samples of all nodes per step."""
    gradient_bytes: int
    """One copy of all gradients: 4 bytes per trainable parameter in fp32."""
    sample_bytes: float
    """Mean over the data set, as the gang reads it."""
    local_share: float = 1.0
    """Share of the bytes that lie on the node that reads them."""
    period: int = 1
    """Steps from one synchronisation to the next."""

    @property
    def sync_bytes(self) -> int:
        """Bytes over the network per synchronisation, all nodes together."""
        return 2 * (self.nodes - 1) * self.gradient_bytes

    @property
    def bytes_per_sample(self) -> float:
        """Bytes over the network per sample used."""
        return self.sync_bytes / (self.batch * self.period) + self.sample_bytes * (1 - self.local_share)


@dataclass(frozen=True, slots=True, kw_only=True)
class Crossover:
    """The gang against one way of training centrally."""

    gang: Gang
    against: str
    fetches_per_epoch: float
    """How often the central cluster fetches a sample per epoch: 1, or 1 / epochs where it keeps what it fetched."""

    @property
    def saved_bytes_per_sample(self) -> float:
        """What the central cluster fetches per sample and the gang does not; 0 or less: the gang can never win."""
        return self.gang.sample_bytes * (self.fetches_per_epoch - (1 - self.gang.local_share))

    @property
    def locality_number(self) -> float:
        """Above 1 the gang moves fewer bytes; infinite where it synchronises nothing."""
        saved = self.gang.batch * self.gang.period * self.saved_bytes_per_sample
        if not self.gang.sync_bytes:
            return math.inf if saved > 0 else 0.0
        return max(0.0, saved / self.gang.sync_bytes)

    @property
    def break_even_batch(self) -> int | None:
        """The smallest number of samples per synchronisation with which the gang moves no more; None: there is none."""
        if self.saved_bytes_per_sample <= 0:
            return None
        return math.ceil(self.gang.sync_bytes / self.saved_bytes_per_sample)

    @property
    def break_even_period(self) -> int | None:
        """H*: the fewest steps between synchronisations with which the gang moves no more, at this batch."""
        samples = self.break_even_batch
        return None if samples is None else max(1, math.ceil(samples / self.gang.batch))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; an infinite locality number is null."""
        number = self.locality_number
        return {
            "against": self.against,
            "fetches_per_epoch": self.fetches_per_epoch,
            "gang": asdict(self.gang),
            "local_bytes_per_sample": self.gang.bytes_per_sample,
            "central_bytes_per_sample": self.gang.sample_bytes * self.fetches_per_epoch,
            "locality_number": number if math.isfinite(number) else None,
            "break_even_batch": self.break_even_batch,
            "break_even_period": self.break_even_period,
        }

    def sentences(self) -> list[str]:
        """The finding, and what would turn it."""
        gang, number = self.gang, self.locality_number
        central = gang.sample_bytes * self.fetches_per_epoch
        wins = number > 1
        told = [
            f"Against {self.against}: {format_bytes(gang.bytes_per_sample)} per sample over the network beside the data, "
            f"{format_bytes(central)} centrally: the locality number is {_figure(number)}, "
            f"so training {'beside the data' if wins else 'centrally'} moves fewer bytes."
        ]
        if self.break_even_batch is None:
            told.append("No batch is large enough to turn that: the nodes fetch as much as the central cluster does.")
        elif gang.sync_bytes:
            often = "every step" if self.break_even_period == 1 else f"{self.break_even_period} steps"
            limit = gang.batch * gang.period * self.saved_bytes_per_sample / (2 * (gang.nodes - 1))
            told.append(
                f"It turns at {format_count(self.break_even_batch)} samples per synchronisation (now "
                f"{format_count(gang.batch * gang.period)}), that is at one synchronisation in {often}, or at "
                f"{format_bytes(limit)} of gradients (now {format_bytes(gang.gradient_bytes)})."
            )
        return told


def _figure(number: float) -> str:
    return f"{number:.3g}" if math.isfinite(number) else "without limit"


def crossovers(
    plan: Plan, job: JobSpec, catalog: Catalog, found: Estimate, gradient_bytes: int | None
) -> tuple[Crossover, ...]:
    """The plan's gang against central training that fetches every sample in every epoch, and against one that fetches it once.

    Empty where there is no gang or where its bytes are not known. `found` is the plan's estimate.
    """
    stage = next((stage for stage in plan.stages if stage.kind == "train"), None)
    if stage is None or job.train is None or gradient_bytes is None or len(stage.nodes) < 2:
        return ()
    read = [flows for flows in found.flows if flows.stage == stage.name and flows.class_ == "input"]
    total = sum(size for flows in read for size in flows.by_tier().values())
    if any(flows.bytes is None for flows in read) or not total:
        return ()
    epochs = job.train.epochs
    gang = Gang(
        nodes=len(stage.nodes),
        batch=job.train.batch,
        gradient_bytes=gradient_bytes,
        sample_bytes=total / epochs / catalog.total_rows,
        local_share=sum(flows.by_tier().get(Tier.NODE_LOCAL, 0) for flows in read) / total,
    )
    ways = {"fetching every sample in every epoch": 1.0, "fetching every sample once": 1 / epochs}
    return tuple(Crossover(gang=gang, against=way, fetches_per_epoch=phi) for way, phi in ways.items())
