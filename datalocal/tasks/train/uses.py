"""How often a rank used each row, between two checkpoints: the proof that every sample was used once."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from datalocal.ledger.samples import encode_uses
from datalocal.tasks.model import RowMask
from datalocal.tasks.train.reader import RawBatch


class RowUses:
    """Counts uses of rows by shard (uint8 per row of the shard's file)."""

    def __init__(self, masks: Mapping[str, RowMask]) -> None:
        self._rows = {shard: mask.rows for shard, mask in masks.items()}
        self._uses: dict[str, npt.NDArray[np.uint8]] = {}

    def add(self, batch: RawBatch) -> None:
        """Count every sample of `batch`; a row that comes twice counts twice."""
        for i, shard in enumerate(batch.shards):
            rows = batch.rows[batch.shard_of == i]
            if len(rows):
                if shard not in self._uses:
                    self._uses[shard] = np.zeros(self._rows[shard], np.uint8)
                np.add.at(self._uses[shard], rows, 1)

    def take(self) -> dict[str, str]:
        """The counts so far, encoded for a SamplesLine; counting starts anew."""
        used = {shard: encode_uses(uses) for shard, uses in sorted(self._uses.items())}
        self._uses = {}
        return used
