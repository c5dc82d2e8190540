"""A store as a `pyarrow.fs` file system: Parquet and data sets are read as from any other store. For reading only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

import pyarrow as pa
from pyarrow import fs

Open = Callable[[str, Sequence[str]], pa.NativeFile]


class ShardFileSystem(fs.FileSystemHandler):  # type: ignore[misc]  # pyarrow ships no types
    """The files named by `sources` (path -> nodes that hold it), and the folders that their paths imply."""

    def __init__(self, sources: Mapping[str, Sequence[str]], open_: Open) -> None:
        self._sources, self._open = dict(sources), open_
        self._sizes: dict[str, int] = {}
        self._folders = {
            "/".join(parts[:i]) for parts in (path.split("/") for path in self._sources) for i in range(len(parts))
        }

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def get_type_name(self) -> str:
        return "datalocal"

    def normalize_path(self, path: str) -> str:
        return path.strip("/")

    def get_file_info(self, paths: Iterable[str]) -> list[fs.FileInfo]:
        return [self._info(self.normalize_path(path)) for path in paths]

    def get_file_info_selector(self, selector: fs.FileSelector) -> list[fs.FileInfo]:
        base = self.normalize_path(selector.base_dir)
        if base not in self._folders:
            if selector.allow_not_found:
                return []
            raise FileNotFoundError(f"{base}: there is no such folder among the files given to this file system")
        prefix = f"{base}/" if base else ""
        below = [
            path for path in [*self._folders, *self._sources] if path.startswith(prefix) and path not in ("", base)
        ]
        return [self._info(path) for path in sorted(below) if selector.recursive or "/" not in path[len(prefix) :]]

    def open_input_file(self, path: str) -> pa.NativeFile:
        name = self.normalize_path(path)
        if name not in self._sources:
            raise FileNotFoundError(f"{name}: not among the files given to this file system")
        return self._open(name, self._sources[name])

    def open_input_stream(self, path: str) -> pa.NativeFile:
        return self.open_input_file(path)

    def _info(self, path: str) -> fs.FileInfo:
        if path in self._sources:
            if path not in self._sizes:
                with self.open_input_file(path) as file:
                    self._sizes[path] = file.size()
            return fs.FileInfo(path, fs.FileType.File, size=self._sizes[path])
        return fs.FileInfo(path, fs.FileType.Directory if path in self._folders else fs.FileType.NotFound)

    def _read_only(self, *_: Any, **__: Any) -> NoReturn:
        raise PermissionError("this file system is for reading; write with Store.write")

    create_dir = delete_dir = delete_dir_contents = delete_root_dir_contents = delete_file = _read_only
    move = copy_file = open_output_stream = open_append_stream = _read_only
