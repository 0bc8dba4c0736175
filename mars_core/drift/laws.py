"""What changed in the fitted laws: each coefficient with its interval, before and now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from mars_core.records import Float, Record

Interval = tuple[Float, Float]

LAW_NAMES = {"performance": "law P", "me": "law C, vision encoder", "llm": "law C, LLM"}


@dataclass(frozen=True)
class LawSummary(Record):
    """A fitted law without its draws: its form, coefficients and intervals."""

    law: str
    coefficients: Mapping[str, Float]
    intervals: Mapping[str, Interval]


@dataclass(frozen=True)
class CoefficientDrift(Record):
    """One coefficient before and now; None where a fit or its form lacks it.

    `same_form`: both fits have the same form; in another form a coefficient of the same name means something else.
    `apart`: the intervals do not meet. Intervals that meet are no proof that nothing changed.
    """

    law: str
    symbol: str
    before: float | None
    before_interval: Interval | None
    now: float | None
    now_interval: Interval | None
    same_form: bool = True

    stored_too: ClassVar[tuple[str, ...]] = ("apart",)

    @property
    def apart(self) -> bool:
        """Whether the intervals do not meet."""
        if not self.same_form or self.before_interval is None or self.now_interval is None:
            return False
        return self.before_interval[1] < self.now_interval[0] or self.now_interval[1] < self.before_interval[0]


def compare_laws(
    before: Mapping[str, LawSummary | None], now: Mapping[str, LawSummary | None]
) -> tuple[CoefficientDrift, ...]:
    """Line up the coefficients of laws by name (`performance`, `me`, `llm`)."""
    return tuple(drift for name in LAW_NAMES for drift in _compare_law(name, before.get(name), now.get(name)))


def _compare_law(name: str, before: LawSummary | None, now: LawSummary | None) -> list[CoefficientDrift]:
    symbols = dict.fromkeys(symbol for law in (now, before) if law is not None for symbol in law.coefficients)
    same_form = before is None or now is None or before.law == now.law
    return [CoefficientDrift(name, symbol, *_of(before, symbol), *_of(now, symbol), same_form) for symbol in symbols]


def _of(law: LawSummary | None, symbol: str) -> tuple[float | None, Interval | None]:
    if law is None or symbol not in law.coefficients:
        return None, None
    return law.coefficients[symbol], law.intervals.get(symbol)
