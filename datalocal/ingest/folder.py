"""A folder of images, a class per folder, below a folder per split or not."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import pyarrow as pa

from datalocal.errors import DatasetError
from datalocal.ingest.model import Sample
from datalocal.storage.files import is_hidden

IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".jpe", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"))

SPLITS = frozenset(("train", "training", "val", "valid", "validation", "test", "testing", "dev", "eval"))


class FolderSource:
    """`root/class/…/image.jpg`, `root/split/class/…/image.jpg` or, without labels, `root/image.jpg`.

    The order is random (by the seed): sorted by class, shards would hold a class each, and nodes train on what they hold.
    Raises DatasetError when only some of the images lie in a class folder.
    """

    def __init__(self, root: Path, seed: int) -> None:
        self._root = root
        names = sorted(name for name in files_below(root) if PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES)
        self._names = [names[i] for i in np.random.default_rng((seed, len(names))).permutation(len(names))]
        self._with_splits = bool(names) and all(
            len(parts) > 1 and parts[0].lower() in SPLITS for parts in map(_parts, names)
        )
        depth = 2 + self._with_splits
        loose = [name for name in names if len(_parts(name)) < depth]
        self.labelled = bool(names) and not loose
        if loose and len(loose) < len(names):
            raise DatasetError(
                f"{root}: {len(loose)} of {len(names)} images lie in no class folder, for instance {loose[0]}",
                "put every image into a folder named after its class, or all of them directly into one folder",
            )
        self.images = len(names)
        self.classes = tuple(sorted({self._class(name) for name in names})) if self.labelled else ()
        self.carried = pa.schema([("split", pa.string())] if self._with_splits else [])

    def samples(self) -> Iterator[Sample]:
        for name in self._names:
            image, problem = read_bytes(self._root / name)
            yield Sample(
                image=image,
                label=self._class(name) if self.labelled else None,
                path=name,
                source=name,
                row=0,
                problem=problem,
                carried={"split": _parts(name)[0]} if self._with_splits else {},
            )

    def _class(self, name: str) -> str:
        return _parts(name)[1 if self._with_splits else 0]


def files_below(root: Path) -> Iterator[str]:
    """Paths, relative to `root`, of all files that are not hidden. Raises DatasetError."""

    def failed(error: OSError) -> None:
        raise DatasetError(f"{error.filename} cannot be read: {error.strerror}", "make it readable, or take it away")

    for parent, folders, files in os.walk(root, onerror=failed):
        folders[:] = [name for name in folders if not is_hidden(name)]
        inside = Path(parent).relative_to(root)
        yield from ((inside / name).as_posix() for name in files if not is_hidden(name))


def kinds(names: list[str]) -> str:
    """What lies there, for messages: ``12 .csv, 1 .txt``."""
    counts = Counter(PurePosixPath(name).suffix.lower() or "without suffix" for name in names)
    return ", ".join(f"{count} {suffix}" for suffix, count in counts.most_common(5)) or "no files"


def read_bytes(path: Path) -> tuple[bytes | None, str]:
    """The file's bytes, or the problem."""
    try:
        return path.read_bytes(), ""
    except OSError as error:
        return None, f"cannot be read: {error.strerror or error}"


def _parts(name: str) -> tuple[str, ...]:
    return PurePosixPath(name).parts
