"""RAPL through the kernel's powercap tree: packages and their memory, each once.

psys contains the packages, and core and uncore are contained in them: adding those up would count energy twice.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from datalocal.ledger.records import JouleOrigin
from datalocal.metering.counter import Counter

POWERCAP = Path("/sys/class/powercap")
DEFAULT_LIMIT_WATTS = 1000.0
_LEAST_LIMIT_WATTS = 500.0
_CPUINFO = Path("/proc/cpuinfo")
IN_VM_VARIABLE = "DATALOCAL_RAPL_IN_VM"
"""Set to 1 on a machine that calls itself virtual and has its host's packages to itself."""

PERMISSION_FIX = (
    "let the worker's user read it: `sudo chmod a+r {path}` (after each boot), or declare `power:` in the cluster file"
)


@dataclass(slots=True, kw_only=True)
class Zone:
    """One package or its memory."""

    name: str
    """`package-0` or `package-0/dram`."""
    path: Path
    counter: Counter
    """Microjoules."""
    problem: str = ""
    """Why the last look failed; empty when it did not."""
    looked: bool = False
    """Whether a look has ever succeeded."""
    origin: JouleOrigin = "measured.counter"

    @property
    def joules(self) -> float | None:
        """Since the first look; None when there was none."""
        return self.counter.total / 1e6 if self.looked else None

    @property
    def counter_joules(self) -> float | None:
        """What the counter itself says; None before the first look."""
        return None if self.counter.value is None else self.counter.value / 1e6

    def look(self, at_seconds: float) -> None:
        """Read the counter. A failure is kept in `problem`, never raised."""
        file = self.path / "energy_uj"
        try:
            value = int(file.read_text(encoding="ascii"))
        except PermissionError:
            self.problem = f"no_permission: {file} is for root only; " + PERMISSION_FIX.format(path=file)
        except (OSError, ValueError) as error:
            self.problem = f"read_error: {file}: {error}"
        else:
            self.counter.update(value, at_seconds)
            self.problem, self.looked = "", True


def is_virtual(cpuinfo: Path = _CPUINFO) -> bool:
    """Whether this kernel runs on a hypervisor, whose RAPL (if any) is not this machine's own.

    `DATALOCAL_RAPL_IN_VM=1` says that it is.
    """
    if os.environ.get(IN_VM_VARIABLE) == "1":
        return False
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return "hypervisor" in flags.split()


def find_zones(root: Path, *, virtual: bool) -> tuple[list[Zone], str]:
    """The zones below `root`, and why there are none (empty when there are)."""
    if not root.is_dir():
        return [], f"no_meter: this kernel has no {root}"
    zones: dict[str, Zone] = {}
    for path in sorted(root.glob("intel-rapl*:*"), key=lambda path: ("mmio" in path.name, path.name)):
        name = _name(root, path)
        if name and name not in zones:  # the same package under intel-rapl-mmio is one counter seen twice
            zones[name] = Zone(name=name, path=path, counter=_counter(path))
    if not zones:
        return [], f"no_meter: no RAPL package below {root}"
    if virtual:
        return [], "vm: this is a virtual machine, whose RAPL counters are not its own"
    return list(zones.values()), ""


def _name(root: Path, path: Path) -> str:
    """The zone's name; empty for what is part of another zone or contains others."""
    own = _text(path / "name")
    if own.startswith("package"):
        return own
    if own == "dram":
        parent = path.name.rsplit(":", 1)[0]
        return f"{_text(root / parent / 'name') or parent}/dram"
    return ""


def _counter(path: Path) -> Counter:
    highest = _number(path / "max_energy_range_uj")
    limits = [_number(file) or 0.0 for file in path.glob("constraint_*_power_limit_uw")]
    watts = max([*limits, 0.0]) / 1e6
    limit_watts = max(1.2 * watts, _LEAST_LIMIT_WATTS) if watts else DEFAULT_LIMIT_WATTS
    return Counter(range=highest, limit_per_second=limit_watts * 1e6)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""


def _number(path: Path) -> float | None:
    try:
        return float(_text(path))
    except ValueError:
        return None
