"""Quantities as text. The only place where figures are rounded: everything else keeps full precision."""

from __future__ import annotations

_PREFIXES = ("", "k", "M", "G", "T", "P", "E")


def _scaled(value: float, unit: str) -> str:
    """Render `value` with an SI prefix and three significant digits, e.g. ``12.3 MB``."""
    step = 0
    while abs(value) >= 999.5 and step < len(_PREFIXES) - 1:
        value /= 1000
        step += 1
    digits = 0 if step == 0 and float(value).is_integer() else max(0, 3 - len(str(int(abs(value)))))
    return f"{value:.{digits}f} {_PREFIXES[step]}{unit}"


def format_bytes(value_bytes: float) -> str:
    """Bytes in powers of 10, e.g. ``12.3 MB``; ``0 B`` is a measured zero."""
    return _scaled(value_bytes, "B")


def format_joules(value_joules: float | None) -> str:
    """Joules with an SI prefix; ``missing`` where there is no figure, never 0."""
    return "missing" if value_joules is None else _scaled(value_joules, "J")


def format_seconds(value_seconds: float | None) -> str:
    """Seconds below two minutes, then minutes and seconds, from two hours on hours and minutes, from two days on days and hours."""
    if value_seconds is None:
        return "-"
    if value_seconds < 120:
        return f"{value_seconds:.1f} s"
    minutes, seconds = divmod(round(value_seconds), 60)
    if minutes < 120:
        return f"{minutes} min {seconds:02d} s"
    hours, minutes = divmod(round(value_seconds / 60), 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    days, hours = divmod(round(value_seconds / 3600), 24)
    return f"{days} d {hours:02d} h"


def format_share(value: float) -> str:
    """A share in percent with one decimal, e.g. ``97.5 %``."""
    return f"{100 * value:.1f} %"


def format_count(value: float) -> str:
    """A count with thousands separators, e.g. ``2,000``."""
    return f"{value:,.0f}"


def format_rate(value_per_second: float | None) -> str:
    """Items per second with three significant digits, e.g. ``84.3/s``; ``-`` where there is none."""
    if value_per_second is None:
        return "-"
    digits = max(0, 3 - len(str(int(abs(value_per_second)))))
    return f"{value_per_second:,.{digits}f}/s"


def format_ratio(value: float | None) -> str:
    """A ratio near one with three decimals, e.g. ``1.003``; ``-`` where there is none."""
    return "-" if value is None else f"{value:.3f}"
