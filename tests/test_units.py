"""Quantities as a person reads them."""

from __future__ import annotations

import pytest

from datalocal.units import format_seconds


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0.04, "0.0 s"),
        (119.94, "119.9 s"),
        (120, "2 min 00 s"),
        (7199.4, "119 min 59 s"),
        (7200, "2 h 00 min"),
        (170_000, "47 h 13 min"),
        (224_066, "2 d 14 h"),
        (172_770, "2 d 00 h"),
        (31 * 86_400 + 3_601, "31 d 01 h"),
    ],
)
def test_long_times_are_told_in_hours_and_days(seconds: float | None, text: str) -> None:
    assert format_seconds(seconds) == text
