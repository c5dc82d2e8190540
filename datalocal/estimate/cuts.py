"""What a pipeline ships per sample at every cut, and which cut ships the least. Pure.

A cut writes what lies before it once; a central cluster that keeps it fetches each sample once, one that does not fetches it
in every epoch. Frozen stages have no gradients, so what training sends is the same at every cut. Stages before the cut see a
sample once, those after it once in every epoch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from datalocal.spec.pipeline import RAW, RESIZED, RESIZED_JPEG, Pipeline

Origin = Literal["catalog", "exact", "measured.sample", "missing"]
"""`catalog`: sizes of the shards; `exact`: follows from shape and type; `measured.sample`: mean of some encoded images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A frozen stage as it was found by running one image through it."""

    name: str
    shape: tuple[int, ...]
    """Of what comes out for one image."""
    parameters: int
    flops: int
    """Floating-point operations (2 per multiply and add) of convolutions and matrix products for one image."""
    sha256: str
    """Over names, types, shapes and values of all weights and buffers."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self) | {"shape": list(self.shape)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Stage:
        """The inverse of `to_json`."""
        return cls(**{**content, "shape": tuple(content["shape"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """Bytes of a sample as a shard holds it: the image column, the other columns, and its part of the file's own words."""

    bytes_per_sample: float | None
    origin: Origin
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CutRow:
    """One place where the pipeline can be cut."""

    cut: str
    stored: Stored
    shape: tuple[int, ...]
    """Of a sample at the cut; empty for raw images."""
    loss: str
    """What differs from the uncut pipeline; empty where results are equal, to the rounding of float32."""
    forbidden: str
    """Why an augmentation rules the cut out; empty where it can be used."""
    flops_before: int
    """Frozen stages' operations per sample, made once, where the data are."""
    flops_after: int
    """Frozen stages' operations per sample and epoch, made in training."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CutTable:
    """All cuts of a job's pipeline, in the order of the work, and the choice."""

    rows: tuple[CutRow, ...]
    chosen: str
    """Where the job is cut: as it says, else the proposal."""
    proposed: str
    """The cut that ships the fewest bytes among those that keep results equal and that nothing forbids."""
    samples: int
    epochs: int
    gradient_bytes: int | None
    """Of one step, the same at every cut: the frozen stages have none."""

    def row(self, cut: str) -> CutRow:
        """The row of `cut`. Raises KeyError."""
        for row in self.rows:
            if row.cut == cut:
                return row
        raise KeyError(cut)

    def once_bytes(self, row: CutRow) -> int | None:
        """Of the whole data set: every sample once."""
        each = row.stored.bytes_per_sample
        return None if each is None else round(each * self.samples)

    def every_epoch_bytes(self, row: CutRow) -> int | None:
        """Of the whole data set in every epoch."""
        once = self.once_bytes(row)
        return None if once is None else once * self.epochs

    def share_of_raw(self, cut: str) -> float | None:
        """Bytes at `cut` per byte of the images as they lie; None where either is not known."""
        raw, here = self.row(RAW).stored.bytes_per_sample, self.row(cut).stored.bytes_per_sample
        return here / raw if here is not None and raw else None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, with totals."""
        return {
            "chosen": self.chosen,
            "proposed": self.proposed,
            "samples": self.samples,
            "epochs": self.epochs,
            "gradient_bytes": self.gradient_bytes,
            "cuts": [
                {
                    "cut": row.cut,
                    "bytes_per_sample": row.stored.bytes_per_sample,
                    "origin": row.stored.origin,
                    "reason": row.stored.reason,
                    "shape": list(row.shape),
                    "once_bytes": self.once_bytes(row),
                    "every_epoch_bytes": self.every_epoch_bytes(row),
                    "frozen_flops": {
                        "once": row.flops_before * self.samples,
                        "training": row.flops_after * self.samples * self.epochs,
                    },
                    "loss": row.loss,
                    "forbidden": row.forbidden,
                }
                for row in self.rows
            ],
        }


def cut_table(
    pipeline: Pipeline,
    stages: Sequence[Stage],
    stored: Mapping[str, Stored],
    *,
    samples: int,
    epochs: int,
    gradient_bytes: int | None = None,
) -> CutTable:
    """The table of a pipeline whose frozen stages are `stages`; `stored` says what a sample takes at each cut.

    Raw images must be known. The proposal is the earliest of the cheapest cuts, so that nothing is computed for nothing.
    """
    rows = tuple(_row(pipeline, stages, cut, stored[cut]) for cut in pipeline.cuts)
    usable = [
        (row.stored.bytes_per_sample, place, row.cut)
        for place, row in enumerate(rows)
        if row.stored.bytes_per_sample is not None and not row.forbidden and row.cut != RESIZED_JPEG
    ]
    proposed = min(usable)[2]
    return CutTable(
        rows=rows,
        chosen=proposed if pipeline.cut == "auto" else pipeline.cut,
        proposed=proposed,
        samples=samples,
        epochs=epochs,
        gradient_bytes=gradient_bytes,
    )


def _row(pipeline: Pipeline, stages: Sequence[Stage], cut: str, stored: Stored) -> CutRow:
    before = len(pipeline.before(cut))
    side = pipeline.image_size
    return CutRow(
        cut=cut,
        stored=stored,
        shape=() if cut == RAW else (side, side, 3) if not before else stages[before - 1].shape,
        loss=_loss(pipeline, cut),
        forbidden=pipeline.forbidden(cut),
        flops_before=sum(stage.flops for stage in stages[:before]),
        flops_after=sum(stage.flops for stage in stages[before:]),
    )


def _loss(pipeline: Pipeline, cut: str) -> str:
    if cut == RESIZED_JPEG:
        return f"encoded a second time, at quality {pipeline.jpeg_quality}"
    if cut in (RAW, RESIZED) or pipeline.dtype == "float32":
        return ""
    return "float16 keeps 11 bits of each feature: a relative error of up to 0.05 %; above 65,504 there is nothing"
