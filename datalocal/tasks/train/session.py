"""What a training script has of its run: its shards in batches, its place in the gang, checkpoints, and the accounting.

Our own loop uses this class and nothing else of the run. See `datalocal.training` for how a script uses it.
"""

from __future__ import annotations

import inspect
import math
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from datalocal.errors import StorageError, TaskError
from datalocal.ledger.records import ByteRow, RankRecord
from datalocal.storage.checkpoints import CheckpointShelf
from datalocal.storage.counting import ByteCounter
from datalocal.tasks.code import load_target
from datalocal.tasks.model import EpochWork, NodeContext, TrainTask
from datalocal.tasks.train.buffers import pinned_memory, plain_memory
from datalocal.tasks.train.checkpoint import Stateful, checkpoint_name, dump, dump_weights, restore
from datalocal.tasks.train.gradients import GradientMeter, Hook
from datalocal.tasks.train.losses import LossCheck
from datalocal.tasks.train.order import global_step_samples, step_bounds
from datalocal.tasks.train.places import own_share, plan_ranks, slots
from datalocal.tasks.train.reader import Pass, RawBatch, ShardReader
from datalocal.tasks.train.replicas import average_buffers, seed_generators
from datalocal.tasks.train.uses import RowUses
from datalocal.tasks.wires import sink_of, store_of

_SECONDS_BETWEEN_PROGRESS = 1.0

_DUMMIES = 2
"""Black images for a rank without samples: BatchNorm refuses a single one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """One rank's samples of one step, on the rank's device.

    The memory behind `images` is used again once nobody refers to it, so a batch stays valid as long as you keep it.
    """

    images: torch.Tensor
    """uint8 [n, S, S, 3] (RGB, NHWC); for a fixed-size-list column its values [n, ...]. See `training.to_float`."""
    labels: torch.Tensor
    """int64 [n] class numbers; [0] where the job has no label column."""
    weight: float
    """Multiply the batch's mean loss by it before `backward()`: then DDP's mean over ranks is the mean over all samples of
    the step. It is world * n / (samples of the step); 0 for the dummy images that a rank without samples gets."""
    samples: int
    """Samples that count: `len(images)`, or 0 for dummies."""
    step: int
    """Number of the step within the whole epoch, from 0."""


class Epoch:
    """The batches of one epoch on this rank. Iterate it once; every rank gets the same number of batches."""

    def __init__(self, session: Session, work: EpochWork) -> None:
        self._session, self._work = session, work
        self.number = work.epoch
        """From 0; epochs before a resumed one are not counted again."""
        self.steps = work.first_step + work.plan.steps
        """Steps of the whole epoch."""

    def __iter__(self) -> Iterator[Batch]:
        return self._session._batches(self._work)


class Session:
    """One rank of a training stage. Use `datalocal.training.session()` to get it in a script."""

    def __init__(self, task: TrainTask, context: NodeContext, local_rank: int, folder: Path | None = None) -> None:
        plans = [work.plan for work in (*task.epochs, *((task.validation,) if task.validation else ()))]
        self._slot = slots(task)[plan_ranks(task)[local_rank]]
        self._task, self._context, self.folder = task, context, folder
        self.cut = task.cut
        """Where the job's pipeline is cut; None for a job without one."""
        self.spec = task.spec
        """The job's `train` section."""
        self.arguments: dict[str, Any] = dict(task.spec.arguments)
        """`train.arguments` of the job."""
        self.rank, self.world, self.node = self._slot.rank, task.world, task.node
        self.local_rank = local_rank
        self.seed = task.seed
        self.labels = task.labels
        self.classes = len(task.labels)
        self.device = torch.device("cuda", 0) if task.device == "cuda" else torch.device("cpu")
        self.backend = "nccl" if task.device == "cuda" else "gloo"
        """For `torch.distributed.init_process_group`."""
        assert all(len(plan.shares) == task.world for plan in plans), "a plan for another number of ranks"
        self._counter = ByteCounter()
        self._store = store_of(task.wiring, context, self._counter)
        self._sink = sink_of(task.wiring, context, self._counter)
        self._shelf = CheckpointShelf(
            self._store, task.wiring.cluster, run=task.wiring.run, arm=task.arm, copies=task.spec.checkpoint_replication
        )
        self._reader = ShardReader(
            lambda shard, sources: self._store.open(task.path(shard), sources),
            task.columns,
            open_exchanged=lambda shard, sources: self._store.open(task.path(shard), sources, "exchange"),
            labels=task.labels,
            image_size=task.spec.image_size,
            max_pixels=task.spec.max_pixels,
            threads=task.spec.threads or max(1, context.cores // task.ranks_on_node),
            where=(context.name, task.id),
            allocate=pinned_memory if task.device == "cuda" else plain_memory,
        )
        self._passes = {work.epoch: self._pass(work) for work in task.epochs}
        if task.epochs:  # while the model is built and the ranks find each other
            self._reader.prefetch(self._passes[task.epochs[0].epoch])
        self._on_the_way: deque[tuple[torch.cuda.Event, torch.Tensor]] = deque()
        self._model: torch.nn.Module | None = None
        self._optimizer: Stateful | None = None
        self._extra: dict[str, Stateful] = {}
        self._synced: torch.nn.Module | None = None
        self._meter: GradientMeter | None = None
        self._losses = LossCheck(self._failed)
        self._work: EpochWork | None = None
        self._current: RawBatch | None = None
        self._done = 0
        self._saved = 0
        self._uses = RowUses({})
        self._images = self._steps = self._since_sync = 0
        self._seconds = dict.fromkeys(("wait", "compute", "checkpoint", "validate"), 0.0)
        self._validate_away_bytes = 0
        self._first_step_at: float | None = None
        self._last_step_at = self._mark = time.monotonic()
        self._progress_at = -math.inf
        self._global_images = np.zeros(1, np.int64)
        self._seed_generators(None)

    # What the run gives

    def load(self, target: str) -> Any:
        """The object behind `module:name`, looked up in the job's folder first. Raises TaskError."""
        return load_target(target, self.folder, node=self.node, task=self._task.id)

    def epochs(self) -> Iterator[Epoch]:
        """The epochs still to do, in order. A resumed run begins within an epoch where its checkpoint was made."""
        for work in self._task.epochs:
            yield Epoch(self, work)
            self._assert_whole_epoch()
            if self._work is not work:
                raise self._failed(
                    f"epoch {work.epoch} was not used", "iterate every epoch that session.epochs() gives"
                )

    def validation(self) -> Iterator[Batch]:
        """This rank's validation samples, each once; ranks may have different numbers of batches.

        Evaluate the bare model, not the one that `wrap` returned: DDP would wait for the other ranks.
        """
        work = self._task.validation
        if work is None:
            return
        begin, away = time.monotonic(), self._away_bytes()
        share = own_share(work, self.node, self.local_rank)
        bounds = step_bounds(share.samples, work.plan.steps)
        bounds = bounds[
            np.concatenate(([True], np.diff(bounds) > 0))
        ]  # no collective here: a step without samples is no step
        what = Pass(
            segments=share.segments,
            masks=work.masks,
            bounds=bounds,
            seed=self.seed,
            epoch=0,
            rank=self.rank,
            shuffle=False,
        )
        for raw in self._reader.batches(what):
            yield self._batch(raw, weight=1.0, step=0)
        self._seconds["validate"] += time.monotonic() - begin
        self._validate_away_bytes += self._away_bytes() - away

    @property
    def validates(self) -> bool:
        """Whether the job sets rows apart for validation."""
        return self._task.validation is not None

    # What the script tells

    def attach(self, *, model: torch.nn.Module, optimizer: Stateful | None = None, **extra: Stateful) -> None:
        """Say what a checkpoint holds: the model (bare or in DDP), the optimizer, and anything else with a state.

        Call it before the first epoch, on every rank. A resumed run gets the state here, in place. Raises TaskError when the
        checkpoint does not fit.
        """
        self._model, self._optimizer, self._extra = model, optimizer, extra
        if self._task.checkpoint is not None:
            content = self._saved_state(self._task.checkpoint)
            try:
                restore(content, model=model, optimizer=optimizer, extra=extra, device=self.device)
            except ValueError as misfit:
                raise self._failed(
                    f"checkpoint {self._task.checkpoint}: {misfit}", "resume with the code that wrote it"
                ) from None
        if isinstance(model, DistributedDataParallel) and self._meter is None:
            self.count_gradients(model)

    def wrap(self, model: torch.nn.Module) -> torch.nn.Module:
        """`model` for data-parallel training on all ranks, with its gradient bytes counted.

        Buffers (BatchNorm's statistics) are not sent in every step; their mean over the ranks, weighted by samples, is taken
        before each checkpoint and at the end of an epoch. A single rank gets the model itself.
        """
        if self.world == 1 or self._context.in_process:
            return model
        if not dist.is_initialized():
            dist.init_process_group(self.backend)
        newer = (
            "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters
        )  # since torch 2.15
        options: dict[str, Any] = {"forward_sync_buffers" if newer else "broadcast_buffers": False}
        device_ids = [0] if self.device.type == "cuda" else None
        parallel = DistributedDataParallel(model, device_ids=device_ids, gradient_as_bucket_view=True, **options)
        self._synced = model
        self.count_gradients(parallel)
        return parallel

    def count_gradients(self, model: DistributedDataParallel, hook: Hook | None = None, state: object = None) -> None:
        """Count the gradient bytes of a DDP model that the script made itself; all ranks together.

        `hook` (with its `state`) is the communication hook to use instead of DDP's all-reduce. A hook that was registered
        before stays in place; then only the sockets are counted.
        """
        self._meter = GradientMeter(self.rank, self.world)
        if hook is not None or not getattr(model, "_comm_hooks", []):
            self._meter.hook_into(model, hook, state)

    def step_done(self, loss: torch.Tensor | float) -> None:
        """Say that a step is done (after `optimizer.step()`), with the batch's own mean loss, before weighting.

        Counts the samples as used and writes checkpoints when they are due. Raises TaskError naming rank, epoch and step
        when the loss is NaN or infinite.
        """
        work, raw = self._work, self._current
        if work is None or raw is None:
            raise self._failed("step_done() without a batch", "call it once after each batch")
        self._current = None
        now = time.monotonic()
        self._seconds["compute"] += now - self._mark
        self._last_step_at = self._mark = now
        step = work.first_step + self._done
        self._losses.add(loss, work.epoch, step)
        self._uses.add(raw)
        self._done += 1
        self._steps += 1
        self._images += len(raw)
        self._since_sync += len(raw)
        if self._meter is not None:
            self._meter.steps += 1
        last = self._done == work.plan.steps
        if last or (step + 1) % self.spec.checkpoint_every_steps == 0:
            self._checkpoint(work)
        self._progress(work)
        self._mark = time.monotonic()

    def report_validation(self, correct: int, total: int, loss_sum: float) -> None:
        """This rank's part of the validation after an epoch; the run adds up the ranks."""
        epoch = self._work.epoch if self._work else (self._task.epochs[-1].epoch if self._task.epochs else 0)
        figures = {"epoch": epoch, "correct": int(correct), "total": int(total), "loss_sum": float(loss_sum)}
        self._sink.record("validation", self._about() | figures)
        self._mark = time.monotonic()

    def finish(self) -> None:
        """Close the session and report what the rank did; the launcher calls it when the script is through."""
        self._assert_whole_epoch()
        if self._task.epochs and self._work is None:
            raise self._failed(
                "the script ended without training on its samples",
                "take them from datalocal.training.session(): `for epoch in session.epochs(): for batch in epoch: ...`",
            )
        record = RankRecord(
            arm=self._task.arm,
            stage=self._task.stage,
            launch=self._task.launch,
            rank=self.rank,
            world=self.world,
            node=self.node,
            device=self._device_name(),
            seconds=self._last_step_at - self._first_step_at if self._first_step_at is not None else 0.0,
            steps=self._steps,
            images=self._images,
            gradients=self._meter.figures() if self._meter else {},
            seconds_by_step=dict(self._seconds),
            validate_away_bytes=self._validate_away_bytes,
            frozen={stage.name: self.cut.sha256[stage.name] for stage in self.cut.pipeline.after(self.cut.at)}
            if self.cut
            else {},
        )
        rows = [row.to_json() for row in self.byte_rows()]
        self._sink.record("rank", {**asdict(record), "bytes": rows})
        self.close()

    def fail(self, record: dict[str, Any]) -> None:
        """Tell the run at once why this rank fails, and what it moved until then."""
        work = self._work
        reached = {"epoch": work.epoch, "step": work.first_step + self._done} if work else {}
        self._sink.record("failure", self._about() | {"node": self.node} | reached | record)
        self._sink.record("bytes", self._about() | {"rows": [row.to_json() for row in self.byte_rows()]})

    def close(self) -> None:
        """Let go of threads and connections."""
        self._reader.close()
        self._store.close()

    def byte_rows(self) -> tuple[ByteRow, ...]:
        """All bytes of this rank so far."""
        if self._meter is None:
            return self._counter.rows()
        nodes = {share.slot.rank: share.slot.node for work in self._task.epochs for share in work.plan.shares}
        for peer, count in sorted(self._meter.payload_bytes.items()):
            self._counter.add("gradients", self.node, nodes[peer], count, "measured.socket")
        self._meter.payload_bytes.clear()
        return self._counter.rows()

    # How it works

    def _away_bytes(self) -> int:
        """Read from other nodes so far."""
        rows = self._counter.rows()
        return sum(row.bytes for row in rows if row.class_ in ("input", "exchange") and row.source != self.node)

    def _batches(self, work: EpochWork) -> Iterator[Batch]:
        self._assert_whole_epoch()
        together = global_step_samples(work.plan)
        self._global_images = np.concatenate(([0], np.cumsum(together)))
        self._work, self._done, self._saved = work, work.start_step, work.start_step
        self._uses = RowUses(work.masks)
        self._seed_generators(work)
        self._mark = time.monotonic()
        if self._first_step_at is None:
            self._first_step_at = self._mark
        raws = self._reader.batches(self._passes[work.epoch], then=self._passes.get(work.epoch + 1))
        if self._meter is not None:
            self._meter.resume()
        labels = np.zeros(self.classes, np.int64)
        for i, raw in enumerate(raws, work.start_step):
            if self._current is not None:
                raise self._failed(
                    f"step {work.first_step + self._done} of epoch {work.epoch} was not finished",
                    "call session.step_done(loss) once after each batch",
                )
            weight = self.world * len(raw) / int(together[i]) if together[i] else 0.0
            batch = (
                self._batch(raw, weight, work.first_step + i) if len(raw) else self._dummy(work, work.first_step + i)
            )
            self._current = raw
            if self.classes:
                labels += np.bincount(raw.labels, minlength=self.classes)
            now = time.monotonic()
            self._seconds["wait"] += now - self._mark
            self._mark = now
            yield batch
        self._assert_whole_epoch()
        if self.classes:
            self._sink.record("labels", self._about() | {"epoch": work.epoch, "counts": labels.tolist()})
            self._mark = time.monotonic()

    def _pass(self, work: EpochWork) -> Pass:
        share = own_share(work, self.node, self.local_rank)
        return Pass(
            segments=share.segments,
            masks=work.masks,
            bounds=step_bounds(share.samples, work.plan.steps),
            seed=self.seed,
            epoch=work.epoch,
            rank=self.rank,
            start_step=work.start_step,
            row_by_row=work.row_by_row,
            window_groups=work.window_groups,
        )

    def _batch(self, raw: RawBatch, weight: float, step: int) -> Batch:
        images, labels = torch.from_numpy(raw.images), torch.from_numpy(raw.labels)
        if self.device.type == "cuda":
            images, labels = self._send(images), labels.to(self.device, non_blocking=True)
        return Batch(images=images, labels=labels, weight=weight, samples=len(raw), step=step)

    def _send(self, host: torch.Tensor) -> torch.Tensor:
        """Copy to the GPU without waiting; the host's memory is held until the copy is done."""
        there = host.to(self.device, non_blocking=True)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch does not annotate it
        event.record()
        self._on_the_way.append((event, host))
        while self._on_the_way and self._on_the_way[0][0].query():  # type: ignore[no-untyped-call]  # as above
            self._on_the_way.popleft()
        return there

    def _dummy(self, work: EpochWork, step: int) -> Batch:
        """What a rank without samples in this step computes on, so that it takes part in the all-reduce."""
        segment = next(segment for share in work.plan.shares for segment in share.segments if segment.samples)
        own = self._passes[work.epoch].segments
        shape, dtype = self._reader.shape(own[0] if own else segment, work.masks)
        images = torch.from_numpy(np.zeros((_DUMMIES, *shape), dtype)).to(self.device)
        labels = torch.zeros(_DUMMIES if self._task.columns.label else 0, dtype=torch.int64, device=self.device)
        return Batch(images=images, labels=labels, weight=0.0, samples=0, step=step)

    def _checkpoint(self, work: EpochWork) -> None:
        """Make what was done since the last checkpoint count: rank 0 sends the state, every rank its samples."""
        begin = time.monotonic()
        self._losses.check_all()
        if self._meter is not None:
            self._meter.pause()
        self._average_buffers()
        step = work.first_step + self._done
        name = checkpoint_name(self._task.launch, work.epoch, step)
        if self.rank == 0:
            if self._model is None:
                raise self._failed("a checkpoint is due and there is no model", "call session.attach(model=...) first")
            content = dump(
                model=self._model,
                optimizer=self._optimizer,
                extra=self._extra,
                epoch=work.epoch,
                step=step,
                seed=self.seed,
            )
            self._shelf.put(name, content)
            if self._shelf.keeps and work is self._task.epochs[-1] and self._done == work.plan.steps:
                self._shelf.put_weights(dump_weights(self._model))
            self._sink.put_checkpoint(self._task.arm, name, content)
        line = {
            "epoch": work.epoch,
            "from_step": work.first_step + self._saved,
            "to_step": step,
            "node": self.node,
            "used": self._uses.take(),
            "checkpoint": name,
        }
        self._sink.record("samples", self._about() | line)
        self._saved = self._done
        self._seed_generators(work)
        if self._meter is not None and self._done < work.plan.steps:
            self._meter.resume()
        self._seconds["checkpoint"] += time.monotonic() - begin

    def _saved_state(self, name: str) -> pa.Buffer:
        try:
            return self._sink.get_checkpoint(self._task.arm, name)
        except StorageError as gone:
            return self._shelf.get(name, self._task.checkpoint_sha256, gone)

    def _average_buffers(self) -> None:
        samples, self._since_sync = self._since_sync, 0
        if self._synced is not None:
            average_buffers(self._synced, samples, self.device)

    def _seed_generators(self, work: EpochWork | None) -> None:
        """Random numbers are a function of seed, rank and position, set anew after every checkpoint: a resumed run draws the
        same ones. Before training starts they are the same on every rank, so that models begin alike."""
        seed_generators(self.seed, *((work.epoch, work.first_step + self._done, self.rank) if work else ()))

    def _progress(self, work: EpochWork) -> None:
        now = time.monotonic()
        if self.rank != 0 or now - self._progress_at < _SECONDS_BETWEEN_PROGRESS:
            return
        self._progress_at = now
        position = {
            "epoch": work.epoch,
            "step": work.first_step + self._done,
            "steps": work.first_step + work.plan.steps,
        }
        images = int(self._global_images[self._done])
        self._sink.record("progress", self._about() | position | {"images": images, "loss": self._losses.last})

    def _about(self) -> dict[str, Any]:
        return {"arm": self._task.arm, "stage": self._task.stage, "launch": self._task.launch, "rank": self.rank}

    def _assert_whole_epoch(self) -> None:
        work = self._work
        if work is not None and self._done < work.plan.steps:
            raise self._failed(
                f"epoch {work.epoch} ended after step {work.first_step + self._done} of {work.first_step + work.plan.steps}",
                "take every batch of an epoch and call session.step_done(loss) after each",
            )

    def _device_name(self) -> str:
        if self.device.type != "cuda":
            return "cpu"
        uuid = self._task.gpus[self.local_rank] if self.local_rank < len(self._task.gpus) else "unknown"
        return f"cuda {torch.cuda.get_device_name(self.device)} {uuid}"

    def _failed(self, cause: str, hint: str = "") -> TaskError:
        return TaskError(self.node, self._task.id, f"rank {self.rank}: {cause}", hint=hint)
