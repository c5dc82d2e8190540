"""NVML's energy counters, one per physical GPU by UUID, kept open: without a client the driver may forget them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from datalocal.metering.counter import Counter

_DEFAULT_LIMIT_WATTS = 2000.0


@dataclass(slots=True, kw_only=True)
class Gpu:
    """One board. A GPU in MIG mode has one counter for all of its instances."""

    uuid: str
    handle: Any
    counter: Counter
    """Millijoules."""
    problem: str = ""
    looked: bool = False

    @property
    def joules(self) -> float | None:
        """Since the first look; None when there was none."""
        return self.counter.total / 1e3 if self.looked else None


@dataclass(slots=True, kw_only=True)
class Nvml:
    """The GPUs of this host. Nothing here raises: meters never fail a job."""

    gpus: list[Gpu] = field(default_factory=list)
    problem: str = ""
    """Why there are no GPUs, e.g. `no_gpu: ...`."""
    _open: bool = False

    @classmethod
    def open(cls) -> Nvml:
        """Start NVML and list the GPUs."""
        import pynvml

        nvml = cls()
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            nvml.problem = _reason(error)
            return nvml
        nvml._open = True
        try:
            for number in range(pynvml.nvmlDeviceGetCount()):
                handle = pynvml.nvmlDeviceGetHandleByIndex(number)
                uuid = str(pynvml.nvmlDeviceGetUUID(handle))
                nvml.gpus.append(Gpu(uuid=uuid, handle=handle, counter=_counter(handle)))
        except pynvml.NVMLError as error:
            nvml.problem = _reason(error)
        if not nvml.gpus and not nvml.problem:
            nvml.problem = "no_gpu: NVML lists no GPU"
        return nvml

    def look(self, at_seconds: float) -> None:
        """Read every counter. Failures are kept in each GPU's `problem`."""
        import pynvml

        for gpu in self.gpus:
            try:
                value = int(pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu.handle))
            except pynvml.NVMLError as error:
                gpu.problem = _reason(error)
            else:
                gpu.counter.update(value, at_seconds)
                gpu.problem, gpu.looked = "", True

    def close(self) -> None:
        """Let go of NVML."""
        import pynvml

        if self._open:
            self._open = False
            try:
                pynvml.nvmlShutdown()
            except pynvml.NVMLError as error:
                self.problem = _reason(error)


def _counter(handle: Any) -> Counter:
    import pynvml

    try:
        watts = 1.2 * int(pynvml.nvmlDeviceGetPowerManagementDefaultLimit(handle)) / 1000
    except pynvml.NVMLError:
        watts = _DEFAULT_LIMIT_WATTS
    return Counter(limit_per_second=watts * 1000)


def _reason(error: Exception) -> str:
    """A reason code and NVML's own words."""
    import pynvml

    codes = {
        pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: "no_gpu",
        pynvml.NVML_ERROR_DRIVER_NOT_LOADED: "no_gpu",
        pynvml.NVML_ERROR_NOT_SUPPORTED: "not_supported",
        pynvml.NVML_ERROR_FUNCTION_NOT_FOUND: "not_supported",
        pynvml.NVML_ERROR_NO_PERMISSION: "no_permission",
        pynvml.NVML_ERROR_GPU_IS_LOST: "lost",
        pynvml.NVML_ERROR_RESET_REQUIRED: "lost",
    }
    return f"{codes.get(getattr(error, 'value', None), 'read_error')}: NVML says {str(error).lower()!r}"
