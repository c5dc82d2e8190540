"""The user's transform: how it is called, what it may return, and what is said when it returns something else."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from datalocal.errors import TaskError
from datalocal.tasks.code import user_trace
from datalocal.tasks.images import encode_jpeg

Pixels: TypeAlias = npt.NDArray[np.uint8]
Features: TypeAlias = npt.NDArray[Any]
Results: TypeAlias = "list[Pixels | bytes] | Features"
"""One result per image: pixels or encoded images, or features [n, ...]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Transform:
    """A function called as `function(images, device, **arguments)`, or an object called as `object(images)`.

    `images` is a list of uint8 [height, width, 3] arrays, RGB. On the CPU it is called by several threads at a time and must be
    thread-safe; on a GPU by one. It returns one result per image, in order: a list of uint8 arrays (stored as JPEG), a list of
    bytes (stored as they are), or one array or tensor [n, ...] of numbers (features).
    """

    name: str
    call: Callable[[list[Pixels]], Any]
    node: str
    task: str

    def __call__(self, images: list[Pixels]) -> Results:
        """The results for `images`. Raises TaskError with the user's frames when the transform raises or returns another count."""
        try:
            returned = self.call(images)
            results = _as_results(returned)
        except (Exception, SystemExit) as error:
            raise self._raised("raised", error) from None
        if results is None:
            raise self.failed(
                f"{self.name} returned {type(returned).__name__}",
                "return a list with one uint8 array [height, width, 3] (or bytes) per image, or one array [n, ...] of features",
            )
        if len(results) != len(images):
            raise self.failed(
                f"{self.name} returned {len(results)} results for {len(images)} images",
                "return one result per image, in order",
            )
        return results

    def failed(self, cause: str, hint: str) -> TaskError:
        return TaskError(self.node, self.task, cause, hint=hint)

    def _raised(self, verb: str, error: BaseException) -> TaskError:
        return raised(self.node, self.task, f"{self.name} {verb}", error)


def raised(node: str, task: str, what: str, error: BaseException) -> TaskError:
    """An exception of the user's code as a TaskError."""
    cause = f"{what} {type(error).__name__}: {error}"
    return TaskError(node, task, cause, user_trace(error), hint="mend the transform and submit again")


def make_transform(
    target: Any, name: str, device: str, arguments: Mapping[str, Any], *, node: str, task: str
) -> Transform:
    """Bind device and arguments. A class is instantiated, once. Raises TaskError when that fails or it cannot be called."""
    make: Callable[..., Any] = target
    if inspect.isclass(target):
        try:
            instance = make(device, **arguments)
        except (Exception, SystemExit) as error:
            raise raised(node, task, f"{name}({device!r}, ...) raised", error) from None
        if callable(instance):
            return Transform(name=name, call=instance, node=node, task=task)
        raise TaskError(node, task, f"{name} is a class without __call__", hint="give it `def __call__(self, images)`")
    if not callable(target):
        raise TaskError(node, task, f"{name} is a {type(target).__name__}, not a function or class")

    def call(images: list[Pixels]) -> Any:
        return make(images, device, **arguments)

    return Transform(name=name, call=call, node=node, task=task)


def encode(results: Results, transform: Transform, quality: int) -> list[bytes | pa.Array]:
    """Results for the image column: one by one, or features as one array. Raises TaskError for what is neither."""
    if isinstance(results, np.ndarray):
        return [_features(results, transform)]
    return [_encode_one(result, transform, quality) for result in results]


def _as_results(returned: Any) -> Results | None:
    if type(returned) is list:
        return returned
    torch = sys.modules.get("torch")  # no tensor can come from where torch was never imported
    if torch is not None and isinstance(returned, torch.Tensor):
        returned = returned.detach().cpu().numpy()
    if isinstance(returned, np.ndarray):
        return returned if returned.ndim >= 1 else None
    if isinstance(returned, Iterable) and not isinstance(returned, str | bytes | Mapping):
        return list(returned)
    return None


def _encode_one(result: Any, transform: Transform, quality: int) -> bytes:
    if isinstance(result, np.ndarray):
        try:
            return encode_jpeg(result, quality)
        except ValueError as error:
            raise transform.failed(
                f"{transform.name} returned for one image: {error}",
                "images are uint8 [height, width, 3]; for features return one array [n, ...] for all images",
            ) from None
    if isinstance(result, bytes | bytearray | memoryview) and len(result):
        return bytes(result)
    what = "no bytes" if isinstance(result, bytes | bytearray | memoryview) else type(result).__name__
    raise transform.failed(
        f"{transform.name} returned {what} for one image", "return a uint8 array [height, width, 3] or encoded bytes"
    )


def _features(values: Features, transform: Transform) -> pa.Array:
    if values.dtype == np.bool_:
        values = values.astype(np.uint8)
    if values.dtype.kind not in "iuf" or 0 in values.shape[1:]:
        raise transform.failed(
            f"{transform.name} returned an array of {values.dtype} with shape {values.shape}",
            "features are integers or floating-point numbers, one or more per image",
        )
    values = np.ascontiguousarray(values, dtype=values.dtype.newbyteorder("="))
    if values.ndim <= 2:
        return pa.FixedSizeListArray.from_arrays(
            pa.array(values.reshape(-1)), values.shape[1] if values.ndim == 2 else 1
        )
    return pa.FixedShapeTensorArray.from_numpy_ndarray(values)
