"""The `pipeline` section of a job: decode, resize, frozen stages, and where the line is cut between data and training.

    decode -> resize -> frozen stage 1 -> ... -> frozen stage n -> train.model

What lies before the cut runs once, where the data are, and is written; what lies after it runs in training.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, model_validator

from datalocal.spec.base import Strict
from datalocal.spec.names import DatasetName, Device, Target

RAW, RESIZED, RESIZED_JPEG, AUTO = "raw", "resized", "resized-jpeg", "auto"


class FrozenStage(Strict):
    """A part of the network that does not learn."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,31}$")] = Field(
        description="what a cut after this stage is called"
    )
    module: Target = Field(description="(**arguments) -> torch.nn.Module; the first gets float [n, 3, S, S] in [0, 1]")
    arguments: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of the module")
    weights: str | None = Field(default=None, description="state dict in the job's folder; default: drawn from `seed`")


class Augment(Strict):
    """A transform that is drawn anew for every sample in every epoch, on training samples only."""

    transform: Target = Field(description="(float images [n, ...], **arguments) -> the same shape")
    arguments: dict[str, Any] = Field(default_factory=dict)
    after: str = Field(default=RESIZED, description="`resized`, or the frozen stage whose output it changes")


class Pipeline(Strict):
    """Everything before the trainable model, and the cut."""

    image_size: int = Field(ge=1, description="side S of the square that is cut out of each image")
    frozen: tuple[FrozenStage, ...] = ()
    augment: Augment | None = None
    cut: str = Field(default=AUTO, description="auto, raw, resized, resized-jpeg, or the name of a frozen stage")
    dtype: Literal["float32", "float16"] = Field(default="float32", description="of features that are shipped")
    seed: int = Field(default=0, ge=0, lt=2**32, description="of the frozen stages' weights, whatever the job's seed")
    output: DatasetName | None = Field(default=None, description="data set to write; default: `{dataset}-{cut}`")
    output_replication: int | None = Field(default=None, ge=1, description="default: the input shard's")
    jpeg_quality: int = Field(default=90, ge=1, le=100, description="of `resized-jpeg`")
    batch: int = Field(default=32, ge=1, description="images that pass the stages before the cut together")
    device: Device = "cpu"
    damaged: Literal["skip", "fail"] = Field(default="fail", description="before the cut; training always fails")

    @model_validator(mode="after")
    def _named(self) -> Pipeline:
        names = [stage.name for stage in self.frozen]
        for name in names:
            if name in (AUTO, RAW, RESIZED, RESIZED_JPEG):
                raise ValueError(f"a frozen stage cannot be called {name!r}: that is a cut of every pipeline")
            if names.count(name) > 1:
                raise ValueError(f"two frozen stages are called {name!r}")
        if self.augment is not None and self.augment.after not in (RESIZED, *names):
            known = ", ".join((RESIZED, *names))
            raise ValueError(f"`augment.after` is {self.augment.after!r}; an augmentation comes after one of: {known}")
        if self.cut != AUTO:
            if self.cut not in self.cuts:
                raise ValueError(f"there is no cut {self.cut!r}; the cuts are {', '.join((AUTO, *self.cuts))}")
            if why := self.forbidden(self.cut):
                raise ValueError(why)
        return self

    @property
    def cuts(self) -> tuple[str, ...]:
        """Where this pipeline can be cut, in the order of the work."""
        return (RAW, RESIZED_JPEG, RESIZED, *(stage.name for stage in self.frozen))

    def before(self, cut: str) -> tuple[FrozenStage, ...]:
        """The frozen stages that run where the data are."""
        return self.frozen[: self._stages_before(cut)]

    def after(self, cut: str) -> tuple[FrozenStage, ...]:
        """The frozen stages that run in training."""
        return self.frozen[self._stages_before(cut) :]

    def forbidden(self, cut: str) -> str:
        """Why `cut` cannot be used; empty where it can."""
        if self.augment is None or self._stages_before(cut) <= self._stages_before(self.augment.after):
            return ""
        allowed = [name for name in self.cuts if self._stages_before(name) <= self._stages_before(self.augment.after)]
        return (
            f"the augmentation {self.augment.transform} changes what comes out of `{self.augment.after}` anew in every "
            f"epoch: a cut after `{cut}` would keep one draw of it for ever; it can be cut at {', '.join(allowed)}"
        )

    def _stages_before(self, cut: str) -> int:
        names = [stage.name for stage in self.frozen]
        return names.index(cut) + 1 if cut in names else 0


def targets(pipeline: Pipeline) -> list[tuple[str, str]]:
    """(key, `module:name`) of the code that the section names."""
    found = [(f"pipeline.frozen.{stage.name}.module", stage.module) for stage in pipeline.frozen]
    return found + ([("pipeline.augment.transform", pipeline.augment.transform)] if pipeline.augment else [])


def weight_files(pipeline: Pipeline) -> Mapping[str, str]:
    """Files in the job's folder that hold weights, by key."""
    return {f"pipeline.frozen.{stage.name}.weights": stage.weights for stage in pipeline.frozen if stage.weights}
