"""The catalog as a value: which shards exist, their rows and bytes, and on which nodes their replicas lie.

Columnar on purpose: 1,000,000 shards with 3 replicas are a dozen arrays, not millions of objects.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Ints: TypeAlias = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Catalog:
    """Shards of one data set and their replicas.

    Shapes: N shards, R replicas, G row groups, L labels, M nodes.
    `nodes` (M names) is the index space of `replica_nodes`; every other array is per shard, replica or row group.
    """

    dataset: str
    nodes: tuple[str, ...]
    shards: tuple[str, ...]
    """N keys, sorted: paths relative to the data set, e.g. `part-00003.parquet`. A shard keeps its key from stage to stage."""
    shard_bytes: Ints
    """[N] file sizes."""
    shard_rows: Ints
    """[N] rows, from the footers."""
    replica_offsets: Ints
    """[N + 1] CSR offsets into `replica_nodes`."""
    replica_nodes: Ints
    """[R] index of the node that holds the replica."""
    group_offsets: Ints
    """[N + 1] CSR offsets into `group_rows` and `group_bytes`."""
    group_rows: Ints
    """[G] rows of each row group."""
    group_bytes: Ints
    """[G] bytes of each row group (all columns, compressed as stored)."""
    labels: tuple[str, ...] = ()
    """L label names: position is the class number for strings; for integers it is their text, in numeric order."""
    label_counts: Ints | None = None
    """[N, L] rows of each label in each shard; None where the job has no label column."""
    warnings: tuple[str, ...] = ()
    """Replicas that were left out and why (truncated footer, differing size, node away)."""
    copies: str = ""
    """The data set in which the shards of `copied` lie; all others lie in `dataset`."""
    copied: frozenset[str] = frozenset()
    """Keys of shards that are read from copies."""

    def __len__(self) -> int:
        return len(self.shards)

    @property
    def total_bytes(self) -> int:
        """Bytes of one copy of every shard."""
        return int(self.shard_bytes.sum())

    @property
    def total_rows(self) -> int:
        """Rows over all shards."""
        return int(self.shard_rows.sum())

    def path(self, shard: int) -> str:
        """Path of shard number `shard` in the store."""
        return f"{self.where(self.shards[shard])}/{self.shards[shard]}"

    def where(self, key: str) -> str:
        """The data set in which the shard with this key is read."""
        return self.copies if key in self.copied else self.dataset

    def replicas(self, shard: int) -> tuple[str, ...]:
        """Names of the nodes that hold shard number `shard`, in stable order."""
        lo, hi = self.replica_offsets[shard], self.replica_offsets[shard + 1]
        return tuple(self.nodes[i] for i in self.replica_nodes[lo:hi])

    def groups(self, shard: int) -> Ints:
        """Rows of each row group of shard number `shard`."""
        return self.group_rows[self.group_offsets[shard] : self.group_offsets[shard + 1]]

    def index(self, key: str) -> int:
        """The number of the shard with this key. Raises KeyError."""
        import bisect

        position = bisect.bisect_left(self.shards, key)
        if position == len(self.shards) or self.shards[position] != key:
            raise KeyError(key)
        return position

    def without_nodes(self, dead: Iterable[str]) -> Catalog:
        """The same shards with the replicas on `dead` nodes gone; a shard may be left with none."""
        gone = set(dead)
        up = np.array([name not in gone for name in self.nodes], dtype=bool)
        alive = up[self.replica_nodes]
        kept = np.concatenate(([0], np.cumsum(alive)))
        return replace(
            self, replica_nodes=self.replica_nodes[alive], replica_offsets=kept[self.replica_offsets].astype(np.int64)
        )

    def with_copies(self, copies: Catalog) -> Catalog:
        """The same shards; those that `copies`, a catalog of some of them, has are read from there alone."""
        nodes = tuple(sorted({*self.nodes, *copies.nodes}))
        number = {name: place for place, name in enumerate(nodes)}
        places = {key: place for place, key in enumerate(copies.shards)}
        held = [
            copies.replicas(places[key]) if key in places else self.replicas(place)
            for place, key in enumerate(self.shards)
        ]
        offsets = np.concatenate(([0], np.cumsum([len(names) for names in held]))).astype(np.int64)
        return replace(
            self,
            nodes=nodes,
            replica_offsets=offsets,
            replica_nodes=np.array([number[name] for names in held for name in names], dtype=np.int64),
            copies=copies.dataset,
            copied=frozenset(copies.shards),
        )

    def select(self, shards: Sequence[int]) -> Catalog:
        """Only these shards, in this catalog's order."""
        chosen = np.array(sorted(shards), dtype=np.int64)
        return build_catalog(
            dataset=self.dataset,
            nodes=self.nodes,
            entries=[
                ShardEntry(
                    key=self.shards[i],
                    bytes=int(self.shard_bytes[i]),
                    replicas=self.replicas(i),
                    group_rows=tuple(int(x) for x in self.groups(i)),
                    group_bytes=tuple(
                        int(x) for x in self.group_bytes[self.group_offsets[i] : self.group_offsets[i + 1]]
                    ),
                    label_counts=() if self.label_counts is None else tuple(int(x) for x in self.label_counts[i]),
                )
                for i in chosen.tolist()
            ],
            labels=self.labels,
            warnings=self.warnings,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardEntry:
    """One shard as a row, for building catalogs from listings and in tests."""

    key: str
    bytes: int
    replicas: tuple[str, ...]
    group_rows: tuple[int, ...]
    group_bytes: tuple[int, ...]
    label_counts: tuple[int, ...] = ()


def build_catalog(
    *,
    dataset: str,
    nodes: Sequence[str],
    entries: Iterable[ShardEntry],
    labels: Sequence[str] = (),
    warnings: Sequence[str] = (),
) -> Catalog:
    """A catalog from rows; shards come out sorted by key, so that the order of a listing never matters."""
    rows = sorted(entries, key=lambda entry: entry.key)
    number = {name: i for i, name in enumerate(nodes)}

    def offsets(lengths: list[int]) -> Ints:
        return np.concatenate(([0], np.cumsum(np.array(lengths, dtype=np.int64)))).astype(np.int64)

    def flat(values: Iterable[Iterable[int]]) -> Ints:
        return np.array([value for group in values for value in group], dtype=np.int64)

    with_labels = bool(labels)
    return Catalog(
        dataset=dataset,
        nodes=tuple(nodes),
        shards=tuple(row.key for row in rows),
        shard_bytes=np.array([row.bytes for row in rows], dtype=np.int64),
        shard_rows=np.array([sum(row.group_rows) for row in rows], dtype=np.int64),
        replica_offsets=offsets([len(row.replicas) for row in rows]),
        replica_nodes=flat(sorted(number[name] for name in row.replicas) for row in rows),
        group_offsets=offsets([len(row.group_rows) for row in rows]),
        group_rows=flat(row.group_rows for row in rows),
        group_bytes=flat(row.group_bytes for row in rows),
        labels=tuple(labels),
        label_counts=np.array([row.label_counts for row in rows], dtype=np.int64).reshape(len(rows), len(labels))
        if with_labels
        else None,
        warnings=tuple(warnings),
    )
