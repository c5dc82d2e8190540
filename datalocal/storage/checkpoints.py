"""Checkpoints and final weights of an arm in the cluster's store, beside what the run's own directory keeps."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import pyarrow as pa

from datalocal.errors import StorageError
from datalocal.spec.cluster import Cluster
from datalocal.storage.client import Store

WEIGHTS = "weights.pt"
"""The model's state alone, written once, when the last epoch is through."""


class CheckpointShelf:
    """Files `checkpoints/RUN/ARM/NAME`, each with `copies` copies; nothing is kept where that is None.

    A file comes into being whole: the store writes it under a temporary name and renames it. Its bytes count as `checkpoint`.
    """

    def __init__(self, store: Store, cluster: Cluster, *, run: str, arm: str, copies: int | None) -> None:
        self._store, self._folder, self._copies = store, f"checkpoints/{run}/{arm}", copies
        self._nodes = _nearest_last(cluster, store.node)

    @property
    def keeps(self) -> bool:
        """Whether anything is kept here."""
        return self._copies is not None

    def put(self, name: str, content: pa.Buffer) -> None:
        """Keep a checkpoint. Raises StorageError when no node takes it."""
        self._write(f"{name}.ckpt", content)

    def put_weights(self, content: pa.Buffer) -> None:
        """Keep the final weights. Raises StorageError when no node takes them."""
        self._write(WEIGHTS, content)

    def get(self, name: str, sha256: str | None, gone: StorageError) -> pa.Buffer:
        """A checkpoint that the run's directory does not have any more, as `gone` says. Raises that, or StorageError with both.

        Others may write in the store, and reading a checkpoint can run code: what has not the hash that the run's ledger
        tells is refused.
        """
        if self._copies is None:
            raise gone
        try:
            with self._store.open(f"{self._folder}/{name}.ckpt", self._nodes, "checkpoint") as file:
                content = file.read_buffer()
        except StorageError as error:
            raise StorageError(f"{gone.message}; {error.message}", gone.hint) from None
        if hashlib.sha256(content).hexdigest() != sha256:
            raise StorageError(
                f"{gone.message}; the store's {self._folder}/{name}.ckpt is not the one that this run wrote", gone.hint
            )
        return content

    def _write(self, name: str, content: pa.Buffer) -> None:
        if self._copies is not None:
            self._store.write_copies(f"{self._folder}/{name}", content, self._nodes, self._copies, "checkpoint")


def _nearest_last(cluster: Cluster, node: str) -> Sequence[str]:
    """The storage nodes in the order to write to them: the own one, then those of other racks, then the rack's others."""
    rack = cluster.rack_of(node)
    return sorted(
        (each.name for each in cluster.storage_nodes),
        key=lambda name: (name != node, cluster.rack_of(name) == rack, name),
    )
