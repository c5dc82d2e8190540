"""`jobs/*.yaml`: what to preprocess, what to train, on which data set; the user's own code as `module:name`."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, field_validator, model_validator

from datalocal.errors import SpecError
from datalocal.spec import pipeline as pipelines
from datalocal.spec.base import Strict, parse, read_yaml
from datalocal.spec.names import DatasetName, Device, Target
from datalocal.spec.pipeline import Pipeline

SPLIT = "split"
"""The column of a data set that tells rows that train from rows that validate. Ingest and preprocess keep them in row groups of
their own: whoever wants the ones need not read the others."""


class Columns(Strict):
    """The columns of the data set that the job reads."""

    image: str = Field(default="image", description="binary (or struct with `bytes`), or a fixed-size list of numbers")
    label: str | None = Field(default="label", description="integers, or strings that the catalog numbers in order")


class Preprocess(Strict):
    """Transform every image of the data set where it lies, and write the results once, next to the input's replicas."""

    transform: Target
    arguments: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of the transform")
    output: DatasetName = Field(description="data set to write; runs and arms each write their own below it")
    output_replication: int | None = Field(default=None, ge=1, description="default: the input shard's")
    decode_min_side: int | None = Field(
        default=None, ge=1, description="smallest side the transform needs: larger JPEGs are decoded at 1/2, 1/4, 1/8"
    )
    max_pixels: int = Field(default=50_000_000, ge=1, description="an image of more pixels is refused before decoding")
    damaged: Literal["skip", "fail"] = Field(default="skip", description="leave damaged images out (counted) or stop")
    jpeg_quality: int = Field(default=90, ge=1, le=100)
    batch: int | None = Field(
        default=None, ge=1, description="images per call of the transform; default: 1 on the CPU, 32 on a GPU"
    )
    device: Device = "cpu"


class Optimizer(Strict):
    """A torch optimizer by `module:name`, with its keyword arguments."""

    name: Target = "torch.optim:SGD"
    arguments: dict[str, Any] = Field(default_factory=lambda: {"lr": 0.05, "momentum": 0.9})


class Validation(Strict):
    """Which rows validate: exactly one of a random fraction, a column's value, or the user's own function."""

    fraction: float | None = Field(default=None, gt=0, lt=1, description="drawn row by row from the seed")
    column: str | None = Field(default=None, description="rows where this column equals `value`")
    value: str | int | bool | None = None
    function: Target | None = Field(default=None, description="(pyarrow.Table of one shard, no image) -> bool array")

    @model_validator(mode="after")
    def _one(self) -> Validation:
        if sum(choice is not None for choice in (self.fraction, self.column, self.function)) != 1:
            raise ValueError("give exactly one of `fraction`, `column` (with `value`) and `function`")
        if (self.column is None) != (self.value is None):
            raise ValueError("`column` and `value` belong together")
        return self


class GangChoice(Strict):
    """Which of the nodes that hold the data train. What none of them holds is read over the network in every epoch."""

    choose: Literal["most-covering", "spread", "rack-packed", "one-box"] = Field(
        default="most-covering",
        description="most-covering: those that together can use the most of the data where it lies, each an equal share; "
        "spread: over all racks; rack-packed: in as few racks as can be; one-box: the node with the most slots",
    )
    nodes: int | None = Field(default=None, ge=1, description="how many; one-box is one")

    @model_validator(mode="after")
    def _counted(self) -> GangChoice:
        if self.choose == "one-box" and self.nodes not in (None, 1):
            raise ValueError(f"`choose: one-box` is one node, not {self.nodes}")
        if self.choose != "one-box" and self.nodes is None:
            raise ValueError(f"`choose: {self.choose}` needs `nodes`, the number of nodes that train")
        return self


class Train(Strict):
    """Train data-parallel on all planned nodes: with our loop (`model`) or the user's own (`script`)."""

    model: Target | None = Field(default=None, description="(classes: int, **arguments) -> torch.nn.Module")
    arguments: dict[str, Any] = Field(
        default_factory=dict, description="keyword arguments of the model, or the script's"
    )
    script: str | None = Field(default=None, description="a training script in the job's folder")
    loss: Target = "torch.nn.functional:cross_entropy"
    optimizer: Optimizer = Optimizer()
    epochs: int = Field(default=1, ge=1)
    batch: int = Field(default=64, ge=1, description="global batch: images per step over all ranks together")
    image_size: int | None = Field(
        default=None, ge=1, description="images are centre-cropped (after a resize if smaller)"
    )
    max_pixels: int = Field(default=50_000_000, ge=1)
    shuffle: Literal["local", "rotate", "partial", "global"] = Field(
        default="local",
        description="local: a rank keeps its shards; rotate: every epoch another replica is read, at no cost in bytes; "
        "partial: every epoch `exchange` of each rank's rows goes to other ranks; global: all rows are dealt anew",
    )
    exchange: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="with `shuffle: partial`: share of each rank's rows that is exchanged per epoch",
    )
    gang: GangChoice | None = Field(
        default=None, description="nodes that train beside the data; default: all; central policies do not look at it"
    )
    class_quota: bool = Field(
        default=False,
        description="of the replicas that there are, read those that bring every rank's labels nearest to those of all",
    )
    validation: Validation | None = None
    checkpoint_every_steps: int = Field(default=100, ge=1)
    checkpoint_replication: int | None = Field(
        default=None,
        ge=1,
        description="copies of checkpoints and final weights in the cluster's store; default: none there",
    )
    device: Device = "auto"
    gpus: int | None = Field(
        default=None, ge=1, description="GPUs the job needs over all nodes; default: all that are there"
    )
    threads: int | None = Field(default=None, ge=1, description="decode threads per rank; default: the node's cores")

    @field_validator("shuffle", mode="before")
    @classmethod
    def _two_keys(cls, value: Any) -> Any:
        written = re.fullmatch(r"partial\(([\d.]+)\)", value) if isinstance(value, str) else None
        if written:
            raise ValueError(f"write `shuffle: partial` and `exchange: {written[1]}`")
        return value

    @model_validator(mode="after")
    def _one_way(self) -> Train:
        if (self.model is None) == (self.script is None):
            raise ValueError("give either `model` (our loop) or `script` (your own loop)")
        if self.gpus is not None and self.device == "cpu":
            raise ValueError(f"`gpus: {self.gpus}` cannot be had with `device: cpu`")
        if self.shuffle == "partial" and self.exchange is None:
            raise ValueError(
                "`shuffle: partial` needs `exchange`, the share that is exchanged, for instance `exchange: 0.1`"
            )
        if self.shuffle != "partial" and self.exchange is not None:
            raise ValueError(f"`exchange: {self.exchange:g}` belongs to `shuffle: partial`, not to `{self.shuffle}`")
        if self.class_quota and self.shuffle == "global":
            raise ValueError(
                "`class_quota` has no effect with `shuffle: global`, which deals every row anew: leave one out"
            )
        return self


class PolicyOptions(Strict):
    """What some policies can be told; the others do not look at it."""

    spark_wait_seconds: float = Field(default=3.0, ge=0, description="spark-delay: how long each level is waited for")
    yarn_missed_opportunities: int | None = Field(
        default=None, ge=0, description="yarn-delay: offers passed over for a local one; default: the number of nodes"
    )
    makespan_slack: float = Field(
        default=0.0,
        ge=0,
        description="optimal-makespan: how much longer than the shortest makespan it may take, as a share of it, to move "
        "fewer bytes",
    )
    cached_share: float = Field(default=0.5, ge=0, le=1, description="central-cached: share of the shards that is kept")


class JobSpec(Strict):
    """A job as a value. `folder` is where its file lies; its code is packed from there."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,62}$")]
    dataset: DatasetName
    columns: Columns = Columns()
    preprocess: Preprocess | None = None
    train: Train | None = None
    pipeline: Pipeline | None = None
    policies: tuple[str, ...] = ("data-local",)
    policy_options: PolicyOptions = PolicyOptions()
    seed: int = Field(default=0, ge=0, lt=2**32)
    max_attempts: int = Field(default=3, ge=1, description="how often a task is placed before its failure is the run's")
    code_limit_bytes: int = Field(default=50_000_000, ge=1, description="limit of the packed job folder")

    @model_validator(mode="after")
    def _something(self) -> JobSpec:
        if self.pipeline is not None:
            self._check_pipeline()
        if self.preprocess is None and self.train is None:
            raise ValueError("a job has a `preprocess` stage, a `train` stage, or both")
        if self.train is not None and self.train.class_quota and self.columns.label is None:
            raise ValueError("`train.class_quota` needs labels: name their column in `columns.label`")
        if self.preprocess is not None and self.preprocess.output == self.dataset:
            raise ValueError(
                f"`preprocess.output` is the input data set {self.dataset!r}; results never replace their input"
            )
        return self

    def _check_pipeline(self) -> None:
        if self.train is None or self.train.model is None:
            raise ValueError("a `pipeline` ends in a trainable model: give `train.model`")
        if self.preprocess is not None:
            raise ValueError("`pipeline` says what is preprocessed: leave `preprocess` out")
        if self.train.image_size is not None:
            raise ValueError("`pipeline.image_size` is the size of the images: leave `train.image_size` out")
        if self.pipeline is not None and self.pipeline.output == self.dataset:
            raise ValueError(
                f"`pipeline.output` is the input data set {self.dataset!r}; results never replace their input"
            )

    @property
    def targets(self) -> tuple[str, ...]:
        """Every `module:name` that the job names."""
        return tuple(target for _, target in _targets(self))

    @property
    def files(self) -> dict[str, str]:
        """Files in the job's folder that it names, by key: a script, weights."""
        found = {"train.script": self.train.script} if self.train is not None and self.train.script else {}
        return found | (dict(pipelines.weight_files(self.pipeline)) if self.pipeline is not None else {})


def at_cut(job: JobSpec, cut: str) -> JobSpec:
    """The job with its pipeline cut at `cut`: what lies before it as a preprocess stage, the rest as training.

    Raises ValueError when the pipeline has no such cut or an augmentation forbids it.
    """
    pipeline, train = job.pipeline, job.train
    assert pipeline is not None and train is not None, "a job without a pipeline has no cut"
    pipeline = Pipeline.model_validate(pipeline.model_dump() | {"cut": cut})
    images = cut in (pipelines.RAW, pipelines.RESIZED, pipelines.RESIZED_JPEG)
    size = pipeline.image_size if images else None
    changes: dict[str, Any] = {"pipeline": pipeline, "train": train.model_copy(update={"image_size": size})}
    if cut != pipelines.RAW:
        changes["preprocess"] = Preprocess(
            transform="datalocal.tasks.before_cut:before_cut",
            output=pipeline.output or f"{job.dataset}-{cut}",
            output_replication=pipeline.output_replication,
            max_pixels=train.max_pixels,
            damaged=pipeline.damaged,
            jpeg_quality=pipeline.jpeg_quality,
            batch=pipeline.batch,
            device=pipeline.device,
        )
    return job.model_copy(update=changes)


def load_job(path: Path, overrides: tuple[str, ...] = ()) -> JobSpec:
    """Read a job file and apply `--set key=value` overrides (dotted keys, YAML values).

    Raises SpecError for anything that could not run: also for code files that the job names and that are not there.
    """
    content = read_yaml(path)
    for override in overrides:
        _apply(content, override)
    job = parse(JobSpec, content, str(path))
    _check_code_is_there(job, path)
    return job


def _apply(content: dict[str, Any], override: str) -> None:
    import yaml

    key, equals, text = override.partition("=")
    if not equals or not key:
        raise SpecError(f"--set {override}", "", "expected key=value, for instance train.epochs=5")
    *parents, last = key.split(".")
    level = content
    for parent in parents:
        level = level.setdefault(parent, {})
        if not isinstance(level, dict):
            raise SpecError(f"--set {override}", parent, "is not a mapping in the job file")
    try:
        level[last] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise SpecError(f"--set {override}", key, "the value is not valid YAML") from None


def _check_code_is_there(job: JobSpec, path: Path) -> None:
    folder = path.resolve().parent
    for key, name in job.files.items():
        file = (folder / name).resolve()
        if not file.is_relative_to(folder):
            raise SpecError(str(path), key, f"{name} lies outside the job's folder {folder}")
        if not file.is_file():
            near = difflib.get_close_matches(
                file.name, [p.name for p in folder.glob(f"*{file.suffix}")], n=1, cutoff=0.5
            )
            raise SpecError(str(path), key, f"there is no file {file}", f"did you mean {near[0]}?" if near else "")
    for key, target in _targets(job):
        module = target.partition(":")[0]
        top = folder / module.split(".")[0]
        if top.with_suffix(".py").is_file() or top.is_dir() or _importable(module.split(".")[0]):
            continue
        near = difflib.get_close_matches(top.name, [p.stem for p in folder.glob("*.py")], n=1, cutoff=0.5)
        hint = (
            f"did you mean {near[0]}:{target.partition(':')[2]}?" if near else f"put {top.name}.py next to the job file"
        )
        raise SpecError(str(path), key, f"no module {module!r} in {folder} or in this Python environment", hint)


def _targets(job: JobSpec) -> list[tuple[str, str]]:
    found: list[tuple[str, str | None]] = []
    if job.preprocess:
        found.append(("preprocess.transform", job.preprocess.transform))
    if job.train:
        found += [("train.model", job.train.model), ("train.loss", job.train.loss)]
        found.append(("train.optimizer.name", job.train.optimizer.name))
        found.append(("train.validation.function", job.train.validation.function if job.train.validation else None))
    if job.pipeline:
        found += pipelines.targets(job.pipeline)
    return [(key, target) for key, target in found if target]


def _importable(module: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(module) is not None
