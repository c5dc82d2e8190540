"""`module:name` as an object: looked up in the job's folder first, without one job's modules showing up in another's."""

from __future__ import annotations

import difflib
import importlib
import sys
import threading
import traceback
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

from datalocal.errors import TaskError

_OURS = str(Path(__file__).resolve().parents[1])

_lock = threading.RLock()
_active: Path | None = None
"""The job folder that is on `sys.path` now, if any."""


def load_target(target: str, folder: Path | None, *, node: str = "this node", task: str = "") -> Any:
    """The object `module:name`; modules in `folder` come before installed ones.

    Loading from another folder forgets the modules of the one before. Folders of the same name (the hash of the same code
    on several nodes of one process) count as one. Raises TaskError naming node, module and folder, and what went wrong.
    """
    module_name, _, name = target.partition(":")
    where = f"the job's folder {folder}" if folder else "this Python environment (the job brings no code)"

    def failed(cause: str, trace: str = "", hint: str = "") -> TaskError:
        return TaskError(node, task or f"loading {target}", cause, trace, hint=hint)

    with _lock:
        _enter(folder)
        try:
            module = importlib.import_module(module_name)
        except (Exception, SystemExit) as error:  # a module's body is user code: it may raise anything
            missing = isinstance(error, ModuleNotFoundError) and error.name == module_name.split(".")[0]
            cause = (
                f"module {module_name!r} of {target} cannot be imported from {where}: {type(error).__name__}: {error}"
            )
            hint = _near_modules(module_name, folder) if missing else "mend the module and submit again"
            raise failed(cause, "" if missing else user_trace(error), hint) from None
        if folder is not None and _is_shadowed(module, module_name, folder):
            origin = getattr(module, "__file__", "the interpreter")
            cause = (
                f"module {module_name!r} lies in {where}, but Python already has another one of that name ({origin})"
            )
            raise failed(cause, hint=f"rename {module_name.split('.')[0]}.py in the job's folder")
        try:
            return getattr(module, name)
        except AttributeError:
            names = [known for known in vars(module) if not known.startswith("_")]
            near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
            hint = (
                f"did you mean {' or '.join(near)}?"
                if near
                else f"it has {', '.join(sorted(names)[:10]) or 'no names'}"
            )
            raise failed(f"module {module_name!r} ({_origin(module)}) has no {name!r}", hint=hint) from None


def user_trace(error: BaseException) -> str:
    """The trace of `error` from the first frame that is not datalocal's own (nor the import machinery's)."""
    told = traceback.TracebackException.from_exception(error)
    frames = list(told.stack)
    while frames and frames[0].filename.startswith((_OURS, "<frozen importlib", importlib.__file__ or _OURS)):
        frames.pop(0)
    told.stack = traceback.StackSummary.from_list(frames)
    return "".join(told.format())


def _enter(folder: Path | None) -> None:
    """Make `folder` the one whose modules are found; forget the modules of the one before."""
    global _active
    if folder is None and _active is None:
        return
    if (
        folder is not None
        and _active is not None
        and folder.name == _active.name
        and (len(folder.name) == 64 or folder.resolve() == _active)
    ):
        return
    if _active is not None:
        for name, module in list(sys.modules.items()):
            if name != "__main__" and _lies_in(module, _active):
                del sys.modules[name]
        sys.path[:] = [entry for entry in sys.path if entry != str(_active)]
        sys.path_importer_cache.pop(str(_active), None)
    _active = folder.resolve() if folder is not None else None
    if _active is not None:
        sys.path.insert(0, str(_active))
        importlib.invalidate_caches()


def _lies_in(module: ModuleType, folder: Path) -> bool:
    path = getattr(module, "__path__", ())
    # Some of torch's modules answer every attribute with an object of their own, which is no list of folders.
    files = [getattr(module, "__file__", None), *(path if isinstance(path, Iterable) else ())]
    return any(isinstance(file, str) and Path(file).is_relative_to(folder) for file in files)


def _is_shadowed(module: ModuleType, module_name: str, folder: Path) -> bool:
    """Whether `folder` has this module, and `module` is another one."""
    top = folder / module_name.split(".")[0]
    in_folder = top.with_suffix(".py").is_file() or (top / "__init__.py").is_file()
    return in_folder and _active is not None and not _lies_in(module, _active)


def _near_modules(module_name: str, folder: Path | None) -> str:
    if folder is None:
        return "put the module next to the job file, or install it on the nodes"
    names = sorted(path.stem for path in folder.iterdir() if path.suffix == ".py" or path.is_dir())
    near = difflib.get_close_matches(module_name, names, n=1, cutoff=0.5)
    return f"did you mean {near[0]}?" if near else f"the folder has {', '.join(names) or 'no modules'}"


def _origin(module: ModuleType) -> str:
    return getattr(module, "__file__", None) or "built in"
