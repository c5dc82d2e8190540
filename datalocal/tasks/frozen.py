"""Frozen stages as torch modules: built the same way everywhere, and proved equal by a hash of their weights."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from datalocal.errors import SpecError, TaskError
from datalocal.estimate.cuts import Stage
from datalocal.spec.job import Train
from datalocal.spec.pipeline import FrozenStage, Pipeline
from datalocal.tasks.model import Cut
from datalocal.tasks.targets import load_target
from datalocal.tasks.transform import raised

_TRIAL = 2
"""Images that pass through the stages when they are examined: with one, a stage that mixes up the dimensions would go unseen."""


def build_stages(
    cut: Cut, stages: Sequence[FrozenStage], folder: Path | None, device: torch.device, *, node: str, task: str
) -> tuple[torch.nn.Module, ...]:
    """The modules of `stages`, in evaluation mode, without gradients, on `device`.

    Raises TaskError when one cannot be built, or when its weights are not those that the run has examined: then the node has
    another torch, or the stage draws its weights from somewhere else than torch's generator.
    """
    built = []
    for stage in stages:
        module = build(cut.pipeline, stage, folder, node=node, task=task)
        found, expected = fingerprint(module), cut.sha256[stage.name]
        if found != expected:
            raise TaskError(
                node,
                task,
                f"the weights of the frozen stage {stage.name!r} are not those of the run: SHA-256 {found[:12]} here, "
                f"{expected[:12]} expected",
                hint="give the stage its `weights` as a file, or the same torch on every node",
            )
        built.append(module.to(device))
    return tuple(built)


def build(pipeline: Pipeline, stage: FrozenStage, folder: Path | None, *, node: str, task: str) -> torch.nn.Module:
    """One stage on the CPU: its weights are drawn from the pipeline's seed and the stage's place, or read from its file.

    torch's generator is left as it was. Raises TaskError.
    """
    make = load_target(stage.module, folder, node=node, task=task)
    place = [other.name for other in pipeline.frozen].index(stage.name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(pipeline.seed * 1009 + place)
        try:
            module = make(**stage.arguments)
        except (Exception, SystemExit) as error:
            raise raised(node, task, f"{stage.module} raised", error) from None
    if not isinstance(module, torch.nn.Module):
        raise TaskError(
            node, task, f"{stage.module} returned {type(module).__name__}", hint="it must return a torch.nn.Module"
        )
    if stage.weights is not None:
        _load(module, stage, folder, node, task)
    return module.eval().requires_grad_(False)


def fingerprint(module: torch.nn.Module) -> str:
    """SHA-256 over names, types, shapes and values of all weights and buffers, in the order of their names."""
    hasher = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        tensor = value.detach().cpu().contiguous()
        hasher.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        hasher.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return hasher.hexdigest()


def examine(pipeline: Pipeline, folder: Path) -> tuple[Stage, ...]:
    """Build every stage (twice: weights must come out equal) and send black images through: shapes, operations, hashes.

    Raises SpecError naming the stage, before anything has started.
    """
    images = torch.zeros(_TRIAL, 3, pipeline.image_size, pipeline.image_size)
    found = []
    for stage in pipeline.frozen:
        try:
            images, examined = _examine(pipeline, stage, images, folder)
        except TaskError as error:
            problem = f"{error.cause}\n{error.trace.rstrip()}" if error.trace else error.cause
            raise SpecError(str(folder), f"pipeline.frozen.{stage.name}", problem, error.hint) from None
        found.append(examined)
    return tuple(found)


def check_model(pipeline: Pipeline, stages: Sequence[Stage], train: Train, folder: Path) -> None:
    """Send two blank samples through the model that learns. Raises SpecError when it does not take what it will be given.

    How many classes there are only the data set knows: two are assumed, and a model that cannot be built with two is not tried.
    """
    assert train.model is not None, "a pipeline ends in a model"
    side = pipeline.image_size
    shape = stages[-1].shape if stages else (3, side, side)
    try:
        with torch.random.fork_rng(devices=[]):
            model = load_target(train.model, folder)(classes=2, **train.arguments)
    except Exception:  # the run itself will say what is wrong, with the classes that there are
        return
    if not isinstance(model, torch.nn.Module):
        return
    try:
        with torch.no_grad():
            model.eval()(torch.zeros(_TRIAL, *shape))
    except Exception as error:
        last = f"the frozen stage {stages[-1].name!r}" if stages else "the pipeline"
        raise SpecError(
            str(folder),
            "train.model",
            f"{train.model} does not take what {last} gives, {list(shape)} per sample: {type(error).__name__}: {error}",
            "see `train.arguments`, and what each stage gives: datalocal plan",
        ) from None


def _examine(pipeline: Pipeline, stage: FrozenStage, images: torch.Tensor, folder: Path) -> tuple[torch.Tensor, Stage]:
    from torch.utils.flop_counter import FlopCounterMode

    node, task = "this machine", "the job's pipeline"
    module, again = (build(pipeline, stage, folder, node=node, task=task) for _ in range(2))
    hash_ = fingerprint(module)
    if hash_ != fingerprint(again):
        raise TaskError(
            node,
            task,
            f"the frozen stage {stage.name!r} has other weights each time it is built",
            hint="draw them from torch's generator, or give the stage its `weights` as a file",
        )
    counter = FlopCounterMode(display=False)
    try:
        with torch.no_grad(), counter:
            out = module(images)
    except Exception as error:
        raise raised(node, task, f"the frozen stage {stage.name!r} ({stage.module}) raised", error) from None
    _check(out, stage, node, task)
    return out, Stage(
        name=stage.name,
        shape=tuple(out.shape[1:]),
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        flops=counter.get_total_flops() // _TRIAL,
        sha256=hash_,
    )


def _check(out: Any, stage: FrozenStage, node: str, task: str) -> None:
    if not isinstance(out, torch.Tensor):
        what = type(out).__name__
    elif not out.is_floating_point() or out.ndim < 2 or len(out) != _TRIAL or not out[0].numel():
        what = f"{out.dtype} of shape {tuple(out.shape)} for {_TRIAL} images"
    else:
        return
    raise TaskError(
        node,
        task,
        f"the frozen stage {stage.name!r} returned {what}",
        hint="a stage returns one tensor of floating-point numbers [n, ...] for n images",
    )


def _load(module: torch.nn.Module, stage: FrozenStage, folder: Path | None, node: str, task: str) -> None:
    if folder is None or stage.weights is None:
        raise TaskError(node, task, f"the weights {stage.weights} did not travel with the job")
    try:
        module.load_state_dict(torch.load(folder / stage.weights, map_location="cpu", weights_only=True))
    except Exception as error:  # a file of any kind may lie there
        raise TaskError(
            node,
            task,
            f"the frozen stage {stage.name!r} cannot take its weights from {stage.weights}: {type(error).__name__}: {error}",
            hint="save them with torch.save(module.state_dict(), file)",
        ) from None
