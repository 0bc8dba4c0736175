"""What changed in the fitted laws: each coefficient with its interval, before and now."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

Interval = tuple[float, float]

LAW_NAMES = {"performance": "law P", "me": "law C, vision encoder", "llm": "law C, LLM"}


@dataclass(frozen=True)
class LawSummary:
    """A fitted law without its draws: its form, coefficients and intervals."""

    law: str
    coefficients: Mapping[str, float]
    intervals: Mapping[str, Interval]

    @staticmethod
    def from_json(stored: Mapping[str, Any]) -> LawSummary:
        """Read it from a stored fit (`LawFit.to_json`) or from what `to_json` wrote."""
        intervals = {symbol: (bounds[0], bounds[1]) for symbol, bounds in stored["intervals"].items()}
        return LawSummary(stored["law"], dict(stored["coefficients"]), intervals)

    def to_json(self) -> dict[str, Any]:
        """JSON-safe form."""
        intervals = {symbol: list(bounds) for symbol, bounds in self.intervals.items()}
        return {"law": self.law, "coefficients": dict(self.coefficients), "intervals": intervals}


@dataclass(frozen=True)
class CoefficientDrift:
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

    @property
    def apart(self) -> bool:
        """Whether the intervals do not meet."""
        if not self.same_form or self.before_interval is None or self.now_interval is None:
            return False
        return self.before_interval[1] < self.now_interval[0] or self.now_interval[1] < self.before_interval[0]

    def to_json(self) -> dict[str, Any]:
        """JSON-safe form."""
        return {**asdict(self), "apart": self.apart}


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
