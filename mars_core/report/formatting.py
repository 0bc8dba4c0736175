"""Numbers as people read them. Every function takes None or a value that is not finite and returns a dash."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from mars_core.rates import short_rate

DASH = "–"


def number(value: Any, digits: int = 4) -> str:
    """A number to `digits` significant digits: 0.1234, 12.34, 4.1e-07."""
    return DASH if _missing(value) else f"{float(value):.{digits}g}"


def fixed(value: Any, digits: int = 3) -> str:
    """A number with `digits` decimals: 4.683."""
    return DASH if _missing(value) else f"{float(value):.{digits}f}"


def rate(value: Any) -> str:
    """A learning rate in two significant digits: 2e-4, 1.5e-3."""
    return DASH if _missing(value) else short_rate(float(value), 2)


def percent(value: Any, digits: int = 1) -> str:
    """A share as a percentage: 0.613 is 61.3%."""
    return DASH if _missing(value) else f"{100 * float(value):.{digits}f}%"


def signed_percent(value: Any, digits: int = 1) -> str:
    """A relative change with its sign: +1.2%, −5.0%."""
    if _missing(value):
        return DASH
    text = f"{100 * float(value):+.{digits}f}%"
    return text.replace("-", "−")


def count(value: Any) -> str:
    """A whole number with separators: 1,234,567."""
    return DASH if _missing(value) else f"{round(float(value)):,}"


def interval(bounds: Sequence[Any] | None, digits: int = 4) -> str:
    """An interval: [0.12, 0.34]."""
    if bounds is None:
        return DASH
    low, high = bounds
    return f"[{number(low, digits)}, {number(high, digits)}]"


def fixed_interval(bounds: Sequence[Any] | None, digits: int = 3) -> str:
    """An interval with `digits` decimals: [0.120, 0.340]."""
    if bounds is None:
        return DASH
    low, high = bounds
    return f"[{fixed(low, digits)}, {fixed(high, digits)}]"


def percent_interval(bounds: Sequence[Any] | None, digits: int = 1) -> str:
    """An interval of relative changes: −0.3% to +1.2%."""
    if bounds is None:
        return DASH
    low, high = bounds
    return f"{signed_percent(low, digits)} to {signed_percent(high, digits)}"


def plural(n: int, noun: str) -> str:
    """A count with its noun: 1 run, 16 runs."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def duration(seconds: Any) -> str:
    """A time: 0.4 s, 12 s, 3 min 12 s, 2 h 05 min."""
    if _missing(seconds):
        return DASH
    value = float(seconds)
    if value < 10:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(value / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min"


def size_in_bytes(value: Any) -> str:
    """A memory size: 512 MiB, 1.43 GiB."""
    if _missing(value):
        return DASH
    mebibytes = float(value) / 2**20
    return f"{mebibytes:.0f} MiB" if mebibytes < 1024 else f"{mebibytes / 1024:.2f} GiB"


def pair(ranks: Sequence[int] | None) -> str:
    """A rank pair, vision rank first: (8, 16)."""
    return DASH if ranks is None else f"({int(ranks[0])}, {int(ranks[1])})"


def _missing(value: Any) -> bool:
    return value is None or not math.isfinite(float(value))
