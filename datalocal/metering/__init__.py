"""Windows over energy counters: RAPL and NVML where they can be read, the owner's declared watts otherwise, never a guess."""

from datalocal.metering.accumulator import MeterAccumulator, read_meters
from datalocal.metering.rows import JouleRow, joules

__all__ = ["JouleRow", "MeterAccumulator", "joules", "read_meters"]
