"""Training with datalocal's input pipeline: in a run's own script, in our loop, and outside of any run.

A script that a job starts with `train: {script: train.py}`:

    import torch
    from datalocal import training

    session = training.session()
    model = Net(session.classes, **session.arguments).to(session.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    parallel = session.wrap(model)  # or your own DistributedDataParallel, and session.count_gradients(it)
    session.attach(model=model, optimizer=optimizer)  # what checkpoints hold; a resumed run gets its state here
    for epoch in session.epochs():
        for batch in epoch:
            loss = torch.nn.functional.cross_entropy(parallel(training.to_float(batch.images)), batch.labels)
            optimizer.zero_grad()
            (loss * batch.weight).backward()
            optimizer.step()
            session.step_done(loss)

Every rank runs the script. Each gets the same number of batches; `batch.weight` makes DDP's mean over ranks the mean over
the samples of the step. The script's arguments also come as `--key value` in `sys.argv`.
"""

from __future__ import annotations

import torch

from datalocal.errors import ClusterError
from datalocal.tasks.train.dataset import ShardDataset
from datalocal.tasks.train.session import Batch, Epoch, Session

__all__ = ["Batch", "Epoch", "Session", "ShardDataset", "session", "to_float"]

_session: Session | None = None


def session() -> Session:
    """This rank's session of the run that started the script. Raises ClusterError when no run did."""
    if _session is None:
        raise ClusterError(
            "datalocal.training.session() was called outside of a run",
            "start the script with a job (`train: {script: train.py}`, `datalocal submit`); outside of runs use ShardDataset",
        )
    return _session


def open_session(opened: Session | None) -> None:
    """Make `opened` what `session()` returns in this process; the launcher calls it before the script."""
    global _session
    _session = opened


def to_float(images: torch.Tensor, *, channels_last: bool = False) -> torch.Tensor:
    """float32 for a model: uint8 images [n, H, W, C] become [n, C, H, W] in [0, 1]; other arrays only change their type.

    `channels_last` keeps the memory in the order of the pixels (quicker for convolutions on some devices; a model that uses
    `view` on activations does not accept it).
    """
    if images.dtype != torch.uint8 or images.ndim != 4:
        return images.to(torch.float32)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return images.permute(0, 3, 1, 2).to(torch.float32, memory_format=memory_format).div_(255)
