"""The data set in the making: never taken for a whole one before it is whole, and safe to begin again."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator, Mapping

import pyarrow as pa
from pydantic import TypeAdapter, ValidationError

from datalocal.errors import DatasetError, StorageError
from datalocal.spec.job import Columns
from datalocal.spec.names import DatasetName
from datalocal.storage.client import Store

UNFINISHED = "unfinished-ingest.parquet"
"""Lies in the data set on every storage node from before the first shard to after the last one. It is no Parquet, on purpose: a
data set with a shard of which no replica can be read is refused by the catalog, naming this file."""


class Target:
    """Data set `dataset` on the storage nodes `nodes`; `others` are nodes that may hold an older one of the same name."""

    def __init__(self, store: Store, dataset: str, nodes: tuple[str, ...], others: tuple[str, ...]) -> None:
        self.store, self.dataset, self.nodes = store, dataset, nodes
        self._everywhere = (*others, *nodes)
        self._marker = f"unfinished, by ingest {uuid.uuid4().hex}".encode()
        try:
            TypeAdapter(DatasetName).validate_python(dataset)
        except ValidationError:
            raise DatasetError(
                f"{dataset!r} cannot be the name of a data set",
                "a name is a relative path of letters, digits and . _ @ -, for instance photos/small",
            ) from None

    def check(self, *, overwrite: bool, absent: tuple[str, ...]) -> bool:
        """Whether there is something to clear away. Raises DatasetError when what is there may not be replaced."""
        found = {name: node for node in self._everywhere for name in self.store.datasets(node)}
        for name in sorted(found):
            if self.dataset.startswith(f"{name}/"):
                raise DatasetError(
                    f"{self.dataset!r} would lie inside the data set {name!r}, which is on {found[name]}",
                    "choose another name",
                )
        inside = sorted(name for name in found if name == self.dataset or name.startswith(f"{self.dataset}/"))
        if not inside:
            return False
        if overwrite or (inside == [self.dataset] and self._is_unfinished()):
            if absent:
                raise DatasetError(
                    f"the data set {self.dataset!r} cannot be replaced while {', '.join(absent)} is not up: "
                    "what it holds of the old one would come back with it",
                    "bring it up, or choose another name",
                )
            return True
        raise DatasetError(
            f"the data set {self.dataset!r} is there already"
            + (f" (as {', '.join(inside[:5])})" if inside != [self.dataset] else ""),
            "choose another name, or replace it with --overwrite",
        )

    @contextlib.contextmanager
    def in_the_making(self, *, clear: bool) -> Iterator[None]:
        """The data set is empty at the beginning and marked until the end; when something goes wrong, nothing is left of it."""
        try:
            self._mark()
        except BaseException:
            self._unmark_own()  # an older data set of this name is still whole
            raise
        try:
            if clear:  # marked everywhere before the first old shard goes: a half old data set is no data set either
                for node in self._everywhere:
                    self.store.delete(node, self.dataset)
                    if node in self.nodes:
                        self._mark(node)
            yield
        except BaseException:
            self._withdraw()
            raise
        # From the first mark that goes, what is there is whole: no way back. Should this end half way, the catalog refuses
        # the data set because of the other marks, and the next ingest begins again.
        for node in self.nodes:
            self.store.delete(node, f"{self.dataset}/{UNFINISHED}")

    def verify(self, expected: Mapping[str, Mapping[str, int]]) -> None:
        """Check that every node holds exactly these shards (key -> bytes), readable. Raises StorageError."""
        columns = Columns(image="image", label=None)
        for node in self.nodes:
            self.check_ours(node)
            listed = self.store.list(node, self.dataset, columns).shards
            found = {shard.key: shard.error or shard.bytes for shard in listed if shard.key != UNFINISHED}
            if found != dict(expected.get(node, {})):
                different = sorted({key for key, _ in set(found.items()) ^ set(expected.get(node, {}).items())})
                raise StorageError(
                    f"{node}: {self.dataset!r} does not hold what was written there; different: {', '.join(different[:5])}",
                    "let only one program at a time write a data set, and start again",
                )

    def check_ours(self, *nodes: str) -> None:
        """Check, before each write and at the end, that nobody else has begun to write this data set. Raises StorageError."""
        for node in nodes:
            if not self._is_ours(node):
                raise StorageError(
                    f"{node}: another ingest has begun to write {self.dataset!r}",
                    "let only one ingest at a time write a data set, and start again",
                )

    def _mark(self, *nodes: str) -> None:
        self.store.write(f"{self.dataset}/{UNFINISHED}", pa.py_buffer(self._marker), nodes or self.nodes, "control")

    def _is_unfinished(self) -> bool:
        columns = Columns(image="image", label=None)
        return any(
            shard.key == UNFINISHED
            for node in self._everywhere
            for shard in self.store.list(node, self.dataset, columns).shards
        )

    def _is_ours(self, node: str) -> bool:
        try:
            with self.store.open(f"{self.dataset}/{UNFINISHED}", [node], "control") as file:
                return bytes(file.read()) == self._marker
        except StorageError:
            self.store.datasets(node)  # raises when the node is away; else the file is
            return False

    def _withdraw(self) -> None:
        """Take away what was written, unless it is another's. What cannot be reached keeps its mark."""
        for node in self.nodes:
            with contextlib.suppress(StorageError):
                if self._is_ours(node):
                    self.store.delete(node, self.dataset)

    def _unmark_own(self) -> None:
        for node in self.nodes:
            with contextlib.suppress(StorageError):
                if self._is_ours(node):
                    self.store.delete(node, f"{self.dataset}/{UNFINISHED}")
