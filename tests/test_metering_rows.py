"""From readings to rows: no energy twice, none invented, and a sum that is as honest as its weakest member."""

from __future__ import annotations

from typing import Any

import pytest

from datalocal.metering import JouleRow, joules
from datalocal.spec.cluster import PowerProfile

PROFILE = PowerProfile(idle_watts=100, busy_watts=300)


def meter(key: str, name: str, joules: float | None, reason: str = "", **more: Any) -> dict[str, Any]:
    return {
        key: name, "joules": joules, "reason": reason, "origin": "measured.counter", "gaps": 0, "covered_seconds": 0.0,
        "counter_joules": joules, "range_joules": None, "limit_watts": 1000.0, **more,
    }  # fmt: skip


def reading(
    at: float, *, busy: float = 0.0, rapl: list[Any] | None = None, gpus: list[Any] | None = None, by: str = "m"
) -> dict[str, Any]:
    nothing = [meter("zone", "cpu", None, "vm: no counters of its own")]
    return {
        "host": "h", "meter": by, "time": 0.0, "monotonic": at, "cpu_busy_seconds": busy, "cpu_total_seconds": at * 4,
        "rapl": nothing if rapl is None else rapl, "gpus": gpus or [],
    }  # fmt: skip


def rows(start: dict[str, Any], end: dict[str, Any], power: PowerProfile | None = None) -> list[JouleRow]:
    return joules({"h": start}, {"h": end}, stage="s", nodes={"h": ["n"]}, power=power)


def test_declared_watts_count_idle_time_and_busy_time_and_say_so() -> None:
    (row,) = rows(reading(0), reading(10, busy=10), PROFILE)  # 4 cores, a quarter busy
    assert row.joules == pytest.approx(100 * 10 + 200 * 2.5)
    assert (row.component, row.origin) == ("host", "assumed")
    assert "100 W idle" in row.reason and "25 % busy" in row.reason


def test_without_meter_and_declaration_it_is_missing_and_never_zero() -> None:
    (row,) = rows(reading(0), reading(10, busy=10))
    assert (row.joules, row.origin) == (None, "missing")
    assert row.reason.startswith("vm:")


def test_a_measured_cpu_needs_no_declaration() -> None:
    found = rows(
        reading(0, rapl=[meter("zone", "package-0", 5.0)]),
        reading(10, rapl=[meter("zone", "package-0", 905.0)]),
        PROFILE,
    )
    assert [(row.component, row.joules, row.origin) for row in found] == [("cpu package-0", 900.0, "measured.counter")]


def test_a_host_that_nodes_share_is_counted_once_and_named() -> None:
    both = [meter("uuid", "GPU-a", 0.0), meter("uuid", "GPU-b", 0.0)]
    later = [meter("uuid", "GPU-a", 500.0), meter("uuid", "GPU-b", 700.0)]
    names = ["node1", "node2", "node3", "node4"]
    found = joules(
        {"h": reading(0, gpus=both)}, {"h": reading(10, gpus=later)}, stage="s", nodes={"h": names}, power=PROFILE
    )
    gpus = [row for row in found if row.component.startswith("gpu")]
    assert sum(row.joules or 0 for row in gpus) == 1200.0
    assert {row.node for row in found} == {"h"}
    assert all("node1, node2, node3, node4" in row.reason for row in found)


def test_a_gpu_that_two_hosts_list_is_one_gpu() -> None:
    start, end = reading(0, gpus=[meter("uuid", "GPU-a", 0.0)]), reading(10, gpus=[meter("uuid", "GPU-a", 500.0)])
    found = joules({"h1": start, "h2": start}, {"h1": end, "h2": end}, stage="s", nodes={"h1": ["n1"], "h2": ["n2"]})
    assert [row.node for row in found if row.component == "gpu GPU-a"] == ["n1"]


@pytest.mark.parametrize("seconds", [0.0, 0.05])
def test_a_window_too_short_for_its_meter_is_flagged(seconds: float) -> None:
    for end in (0.0, 20.0):
        (row,) = rows(
            reading(5, rapl=[meter("zone", "package-0", 0.0)]),
            reading(5 + seconds, rapl=[meter("zone", "package-0", end)]),
        )
        assert "below_resolution" in row.reason
        assert row.joules != 0


def test_a_meter_that_stands_still_is_no_reading() -> None:
    (row,) = rows(reading(0, rapl=[meter("zone", "p", 7.0)]), reading(60, rapl=[meter("zone", "p", 7.0)]))
    assert row.joules is None
    assert row.reason.startswith("stuck")


def test_a_gap_before_the_window_does_not_spoil_it_and_one_within_does() -> None:
    old: dict[str, Any] = {"gaps": 1, "reason": "reset: the counter fell"}
    (clean,) = rows(
        reading(0, rapl=[meter("zone", "p", 1.0, **old)]), reading(10, rapl=[meter("zone", "p", 51.0, **old)])
    )
    assert (clean.joules, clean.reason) == (50.0, "")
    (lower,) = rows(
        reading(0, rapl=[meter("zone", "p", 1.0)]),
        reading(10, rapl=[meter("zone", "p", 51.0, **old, covered_seconds=4.0)]),
    )
    assert lower.joules == 50.0
    assert lower.reason.startswith("lower bound, 1 gap(s), 40 % of the time covered")


def test_a_gpu_lost_at_the_end_keeps_what_was_read_of_it() -> None:
    (_, row) = rows(
        reading(0, gpus=[meter("uuid", "GPU-a", 0.0)]),
        reading(10, gpus=[meter("uuid", "GPU-a", 400.0, "lost: NVML says 'gpu is lost'", covered_seconds=8.0)]),
    )
    assert row.joules == 400.0
    assert row.reason == "lower bound, 80 % of the time covered: lost: NVML says 'gpu is lost'"


def test_a_meter_that_is_gone_is_missing() -> None:
    (_, row) = rows(reading(0, gpus=[meter("uuid", "GPU-a", 0.0)]), reading(10))
    assert (row.component, row.joules, row.origin) == ("gpu GPU-a", None, "missing")
    assert row.reason.startswith("lost")


def test_when_another_process_reads_the_meters_the_counters_themselves_connect_the_readings() -> None:
    start = meter("uuid", "GPU-a", 50.0, counter_joules=1_000_000.0)
    end = meter("uuid", "GPU-a", 1.0, counter_joules=1_000_600.0)
    (_, row) = rows(reading(0, gpus=[start]), reading(10, gpus=[end], by="another"))
    assert (row.joules, row.origin) == (600.0, "measured.counter")
    sampled: dict[str, Any] = {"origin": "measured.sampled", "counter_joules": None}
    (_, row) = rows(
        reading(0, gpus=[meter("uuid", "GPU-a", 5.0, **sampled)]),
        reading(10, gpus=[meter("uuid", "GPU-a", 9.0, **sampled)], by="another"),
    )
    assert (row.joules, row.origin) == (None, "missing")


def test_a_stage_without_an_end_is_missing_with_its_reason() -> None:
    (row,) = joules({"h": reading(0)}, {}, stage="s", nodes={"h": ["n"]}, power=PROFILE)
    assert (row.joules, row.origin) == (None, "missing")
    assert "end" in row.reason
