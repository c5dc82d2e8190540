"""Which of the layouts a source has."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from datalocal.errors import DatasetError
from datalocal.ingest.folder import IMAGE_SUFFIXES, FolderSource, files_below, kinds
from datalocal.ingest.model import Layout, Source
from datalocal.ingest.parquet import PARQUET_SUFFIXES, ParquetSource
from datalocal.ingest.tars import TAR_SUFFIXES, TarSource


def open_source(
    path: Path, layout: Layout | None, *, seed: int, image: str | None, label: str | None, largest_bytes: int
) -> Source:
    """The images at `path`; the layout is found when it is not given. Raises DatasetError."""
    if path.is_file():
        root, names = path.parent, [path.name]
    elif path.is_dir():
        root, names = path, sorted(files_below(path))
    else:
        raise DatasetError(f"there is no file or folder {path}", "give a folder of images, tars or Parquet files")
    tars = [name for name in names if name.lower().endswith(TAR_SUFFIXES)]
    parquet = [name for name in names if PurePosixPath(name).suffix.lower() in PARQUET_SUFFIXES]
    images = path.is_dir() and any(PurePosixPath(name).suffix.lower() in IMAGE_SUFFIXES for name in names)
    found: list[Layout] = []
    found += ["parquet"] if parquet else []
    found += ["webdataset"] if tars else []
    # Images beside Parquet files are what these point to.
    found += ["folder"] if images and not parquet else []
    if layout is None and len(found) > 1:
        raise DatasetError(
            f"{path} holds more than one kind of data ({kinds(names)})", f"say which to take: {' or '.join(found)}"
        )
    if not found or (layout is not None and layout not in (*found, *(["folder"] if images else []))):
        wanted = {"webdataset": "tars", "parquet": "Parquet files"}.get(layout or "", "images, tars or Parquet files")
        raise DatasetError(
            f"{path} holds no {wanted} ({kinds(names)})",
            "a data set is a folder of images (a class per folder), of WebDataset tars, or of Parquet files",
        )
    chosen = layout or found[0]
    if chosen == "parquet":
        return ParquetSource(root, parquet, image=image, label=label)
    if chosen == "webdataset":
        return TarSource(root, tars, label=label, largest_bytes=largest_bytes)
    return FolderSource(path, seed)
