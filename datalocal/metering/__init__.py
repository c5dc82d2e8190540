"""Windows over energy counters: RAPL and NVML where they can be read, the owner's declared watts otherwise, never a guess."""

from datalocal.metering.accumulator import MeterAccumulator
from datalocal.metering.rows import joules

__all__ = ["MeterAccumulator", "joules"]
