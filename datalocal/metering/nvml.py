"""NVML's energy counters, one per physical GPU by UUID, kept open: without a client the driver may forget them.

A board without a counter (before Volta, some virtual GPUs) is sampled for its power instead.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from datalocal.ledger.records import JouleOrigin
from datalocal.metering.counter import Counter, PowerSum

_DEFAULT_LIMIT_WATTS = 2000.0
SAMPLE_SECONDS = 1.0
"""Between two samples of power: NVML averages over about a second."""


@dataclass(slots=True, kw_only=True)
class Gpu:
    """One board. A GPU in MIG mode has one counter for all of its instances."""

    uuid: str
    handle: Any
    counter: Counter | PowerSum
    """Millijoules; where power is sampled, joules."""
    problem: str = ""
    looked: bool = False

    @property
    def joules(self) -> float | None:
        """Since the first look; None when there was none."""
        return self.counter.total / self._per_joule if self.looked else None

    @property
    def counter_joules(self) -> float | None:
        """What the board's counter says, since the driver was loaded; None where there is no counter."""
        return None if self.counter.value is None else self.counter.value / self._per_joule

    @property
    def _per_joule(self) -> float:
        return 1e3 if isinstance(self.counter, Counter) else 1.0

    @property
    def origin(self) -> JouleOrigin:
        """How its joules come about."""
        return "measured.counter" if isinstance(self.counter, Counter) else "measured.sampled"

    def look(self, at_seconds: float) -> None:
        """Read the counter. A failure is kept in `problem`, never raised."""
        import pynvml

        try:
            if isinstance(self.counter, Counter):
                self.counter.update(int(pynvml.nvmlDeviceGetTotalEnergyConsumption(self.handle)), at_seconds)
            else:
                self.counter.update(int(pynvml.nvmlDeviceGetPowerUsage(self.handle)) / 1e3, at_seconds)
        except pynvml.NVMLError as error:
            self.problem = _reason(error)
        else:
            self.problem, self.looked = "", True


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
        """Read every counter."""
        for gpu in self.gpus:
            gpu.look(at_seconds)

    @property
    def samples_power(self) -> bool:
        """Whether a board has no counter, so that it must be looked at every second."""
        return any(isinstance(gpu.counter, PowerSum) for gpu in self.gpus)

    def close(self) -> None:
        """Let go of NVML."""
        import pynvml

        if self._open:
            self._open = False
            try:
                pynvml.nvmlShutdown()
            except pynvml.NVMLError as error:
                self.problem = _reason(error)


def _counter(handle: Any) -> Counter | PowerSum:
    import pynvml

    try:
        pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    except (pynvml.NVMLError_NotSupported, pynvml.NVMLError_FunctionNotFound):
        return PowerSum(sample_seconds=SAMPLE_SECONDS)
    except pynvml.NVMLError:  # whatever it is, the first look will tell it
        pass
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
