"""Windows over energy counters: RAPL and NVML where they can be read, the owner's declared watts otherwise, never a guess."""

from datalocal.metering.accumulator import MeterAccumulator, read_meters
from datalocal.metering.rows import JouleRow, Total, joules, total

__all__ = ["JouleRow", "MeterAccumulator", "Total", "joules", "read_meters", "total"]
