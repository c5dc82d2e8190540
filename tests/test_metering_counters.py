"""Counters that wrap, reset, stall and fail; all with a clock that the test turns."""

from __future__ import annotations

import contextlib
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from datalocal.metering import MeterAccumulator, joules, read_meters
from datalocal.metering.counter import Counter, PowerSum
from datalocal.metering.nvml import Nvml
from datalocal.metering.rapl import find_zones, is_virtual
from datalocal.metering.rows import JouleRow

RANGE = 262_143_328_850  # microjoules, as many Xeons have it


def counter(range_: float | None = RANGE, limit_watts: float = 400.0) -> Counter:
    return Counter(limit_per_second=limit_watts * 1e6, range=range_)


@given(st.integers(0, RANGE), st.lists(st.integers(0, 300 * 10**6), max_size=200))
def test_wraps_give_the_exact_energy(begin: int, steps: list[int]) -> None:
    meter = counter()
    value = begin
    meter.update(value, 0.0)
    for second, step in enumerate(steps, 1):
        value = (value + step) % (RANGE + 1)
        meter.update(value, float(second))
    assert (meter.total, meter.gaps) == (sum(steps), 0)
    assert meter.covered_seconds == len(steps)


@pytest.mark.parametrize(
    ("before", "after", "energy"), [(RANGE, 0, 1), (RANGE, 99, 100), (0, RANGE, RANGE), (5, 4, RANGE)]
)
def test_wraps_at_the_edges(before: int, after: int, energy: int) -> None:
    meter = counter()
    meter.update(before, 0.0)
    meter.update(after, 655.0)  # just short enough that a second wrap is impossible
    assert (meter.total, meter.gaps) == (energy, 0)


def test_a_fall_whose_range_nobody_knows_is_a_gap() -> None:
    meter = counter(range_=None)
    for second, value in enumerate((9e9, 1e6, 2e6)):
        meter.update(value, float(second))
    assert (meter.total, meter.gaps, meter.covered_seconds) == (1e6, 1, 1.0)
    assert meter.why.startswith("reset")


def test_a_reset_is_not_taken_for_a_wrap() -> None:
    meter = counter()
    meter.update(RANGE // 2, 0.0)
    meter.update(10, 1.0)  # as a wrap this would be 131 kJ in a second
    assert (meter.total, meter.gaps) == (0, 1)


def test_after_a_drop_the_recovery_does_not_book_the_lifetime() -> None:
    meter = counter(range_=None)
    for second, value in enumerate((8e12, 0, 8e12 + 5e6)):
        meter.update(value, float(second))
    assert (meter.total, meter.gaps) == (0, 2)


def test_a_rise_above_the_power_limit_is_no_energy() -> None:
    meter = counter()
    meter.update(0, 0.0)
    meter.update(100_000 * 10**6, 10.0)
    assert (meter.total, meter.gaps) == (0, 1)


def test_an_interval_in_which_two_wraps_fit_is_told() -> None:
    meter = counter()
    meter.update(0, 0.0)
    meter.update(7, 10_000.0)
    assert (meter.gaps, meter.covered_seconds) == (1, 0.0)
    assert meter.why.startswith("ambiguous")


@given(st.lists(st.floats(0, 700), min_size=2, max_size=50))
def test_samples_of_power_integrate_to_what_lies_between_the_extremes(watts: list[float]) -> None:
    meter = PowerSum(sample_seconds=1.0)
    for second, value in enumerate(watts):
        meter.update(value, float(second))
    seconds = len(watts) - 1
    assert min(watts) * seconds - 1e-6 <= meter.total <= max(watts) * seconds + 1e-6
    assert (meter.covered_seconds, meter.gaps) == (seconds, 0)


def test_a_late_sample_of_power_leaves_a_gap() -> None:
    meter = PowerSum(sample_seconds=1.0)
    for at in (0.0, 1.0, 20.0, 21.0):
        meter.update(100.0, at)
    assert (meter.total, meter.covered_seconds, meter.gaps) == (200.0, 2.0, 1)


# A powercap tree


class Powercap:
    """A tree like /sys/class/powercap that the test writes."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def zone(self, folder: str, name: str, energy: int | str = 0, range_: int | None = RANGE) -> Path:
        path = self.root / folder
        path.mkdir(parents=True)
        (path / "name").write_text(name + "\n")
        (path / "energy_uj").write_text(f"{energy}\n")
        if range_ is not None:
            (path / "max_energy_range_uj").write_text(f"{range_}\n")
        return path

    def set(self, folder: str, energy: int | str) -> None:
        (self.root / folder / "energy_uj").write_text(f"{energy}\n")


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def powercap(tmp_path: Path) -> Powercap:
    return Powercap(tmp_path / "powercap")


@pytest.fixture
def clock() -> Clock:
    return Clock()


def meters(powercap: Powercap, clock: Clock, **more: Any) -> MeterAccumulator:
    options: dict[str, Any] = {"virtual": False, "nvml": Nvml(), "watch": False, **more}
    return MeterAccumulator(powercap_root=powercap.root, clock=clock, **options)


def window(start: dict[str, Any], end: dict[str, Any], **more: Any) -> dict[str, JouleRow]:
    rows = joules({"h": start}, {"h": end}, stage="s", nodes={"h": ["n"]}, **more)
    return {row.component: row for row in rows}


def test_packages_and_memory_count_once_and_their_parts_and_psys_never(powercap: Powercap) -> None:
    for folder, name in {
        "intel-rapl:0": "package-0",
        "intel-rapl:0:0": "core",
        "intel-rapl:0:1": "dram",
        "intel-rapl:1": "package-1",
        "intel-rapl:1:0": "uncore",
        "intel-rapl:1:1": "dram",
        "intel-rapl:2": "psys",
        "intel-rapl-mmio:0": "package-0",
        "intel-rapl-mmio:0:0": "dram",
    }.items():
        powercap.zone(folder, name)
    zones, _ = find_zones(powercap.root, virtual=False)
    assert sorted(zone.name for zone in zones) == ["package-0", "package-0/dram", "package-1", "package-1/dram"]
    assert {zone.path.name for zone in zones} == {"intel-rapl:0", "intel-rapl:0:1", "intel-rapl:1", "intel-rapl:1:1"}


def test_a_wrap_in_one_of_two_packages(powercap: Powercap, clock: Clock) -> None:
    powercap.zone("intel-rapl:0", "package-0", RANGE - 10 * 10**6)
    powercap.zone("intel-rapl:1", "package-1", 5 * 10**6)
    meter = meters(powercap, clock)
    start = meter.read()
    clock.now += 1
    powercap.set("intel-rapl:0", 10**6 - 1)
    powercap.set("intel-rapl:1", 60 * 10**6)
    rows = window(start, meter.read())
    assert rows["cpu package-0"].joules == pytest.approx(11.0)
    assert rows["cpu package-1"].joules == pytest.approx(55.0)
    assert {row.origin for row in rows.values()} == {"measured.counter"}


def test_windows_add_up_and_a_wider_one_never_has_less(powercap: Powercap, clock: Clock) -> None:
    powercap.zone("intel-rapl:0", "package-0", RANGE - 20 * 10**6)
    meter = meters(powercap, clock)
    readings = [meter.read()]
    for watts in (30, 5, 120):
        clock.now += 2
        old = int((powercap.root / "intel-rapl:0" / "energy_uj").read_text())
        powercap.set("intel-rapl:0", (old + 2 * watts * 10**6) % (RANGE + 1))
        readings.append(meter.read())

    def energy(first: int, last: int) -> float:
        value = window(readings[first], readings[last])["cpu package-0"].joules
        assert value is not None
        return value

    assert energy(0, 3) == pytest.approx(energy(0, 1) + energy(1, 2) + energy(2, 3)) == pytest.approx(310.0)
    assert energy(0, 1) <= energy(0, 2) <= energy(0, 3)


def test_the_wall_clock_may_jump(powercap: Powercap, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    powercap.zone("intel-rapl:0", "package-0", 0)
    meter = meters(powercap, clock)
    start = meter.read()
    clock.now += 10
    powercap.set("intel-rapl:0", 10**9)
    end = meter.read()
    for hour in (-3600, 3600):
        row = window(start, {**end, "time": start["time"] + hour})["cpu package-0"]
        assert (row.joules, row.reason) == (1000.0, "")


def test_a_read_error_in_between_is_a_lower_bound_and_never_a_wrap(powercap: Powercap, clock: Clock) -> None:
    powercap.zone("intel-rapl:0", "package-0", 10**9)
    meter = meters(powercap, clock)
    start = meter.read()
    clock.now += 10
    powercap.set("intel-rapl:0", 3 * 10**9)
    meter.poll()
    clock.now += 10
    powercap.set("intel-rapl:0", "garbage")
    row = window(start, meter.read())["cpu package-0"]
    assert row.joules == 2000.0
    assert row.reason.startswith("lower bound, 50 % of the time covered: read_error")


@pytest.fixture
def open_powercap() -> Iterator[Powercap]:
    """A tree that every user reaches: pytest's own folders are closed to others."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Powercap(Path(folder) / "powercap")


@contextlib.contextmanager
def not_root() -> Iterator[None]:
    """Act as `nobody` for a while where the tests run as root, who may read everything."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


def test_a_counter_for_root_only_says_how_to_mend_it(open_powercap: Powercap, clock: Clock) -> None:
    file = open_powercap.zone("intel-rapl:0", "package-0") / "energy_uj"
    file.chmod(0o000)
    with not_root():
        meter = meters(open_powercap, clock)
        start = meter.read()
        clock.now += 10
        row = window(start, meter.read())["cpu package-0"]
    assert (row.joules, row.origin) == (None, "missing")
    assert row.reason.startswith("no_permission") and f"sudo chmod a+r {file}" in row.reason


def test_a_virtual_machine_has_no_counters_of_its_own(powercap: Powercap, clock: Clock, tmp_path: Path) -> None:
    powercap.zone("intel-rapl:0", "package-0")
    meter = meters(powercap, clock, virtual=True)
    start = meter.read()
    clock.now += 1
    rows = list(window(start, meter.read()).values())
    assert [(row.joules, row.origin) for row in rows] == [(None, "missing")]
    assert rows[0].reason.startswith("vm:")
    allowed = meters(powercap, clock, virtual=True, allow_virtual=True).read()
    assert [zone["zone"] for zone in allowed["rapl"]] == ["package-0"]
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor: 0\nflags\t\t: fpu vme hypervisor avx2\n")
    assert is_virtual(cpuinfo)


def test_the_environment_may_say_that_counters_of_a_virtual_machine_are_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("flags\t\t: fpu hypervisor\n")
    monkeypatch.setenv("DATALOCAL_RAPL_IN_VM", "1")
    assert not is_virtual(cpuinfo)


def test_a_host_without_any_meter_reads_as_missing(tmp_path: Path) -> None:
    reading = read_meters(tmp_path / "nothing")
    assert all(zone["joules"] is None and zone["reason"] for zone in reading["rapl"])
    assert 0 < reading["cpu_busy_seconds"] < reading["cpu_total_seconds"]


def test_it_polls_in_the_background_often_enough_that_no_wrap_is_missed(powercap: Powercap) -> None:
    """65 kJ at 1000 W may wrap after 65 s, so it is read every 16 s; here the clock runs that fast."""
    powercap.zone("intel-rapl:0", "package-0", range_=65_532_610_987)
    enough = threading.Event()
    ticks = iter(range(10**9))

    def clock() -> float:
        tick = next(ticks)
        if tick > 3:
            enough.set()
        return float(tick)

    meter = MeterAccumulator(powercap_root=powercap.root, virtual=False, nvml=Nvml(), clock=clock)
    try:
        assert meter.poll_seconds == pytest.approx(65.53 / 4, rel=0.01)
    finally:
        meter.close()
    quick = powercap.zone("intel-rapl:1", "package-1", range_=10**6).name
    assert quick
    meter = MeterAccumulator(powercap_root=powercap.root, virtual=False, nvml=Nvml(), clock=clock)
    try:
        assert meter.poll_seconds == 1.0
        assert enough.wait(timeout=20)
    finally:
        meter.close()
