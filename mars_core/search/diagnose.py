"""Diagnostics that travel with a choice: what the laws say about themselves, as plain JSON-ready values."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from mars_core.fitting import LawFit
from mars_core.search.balance import BalancePoint, ordered, ordered_draws

GAMMA = 1


def diagnostics_of(
    law_p: LawFit | None,
    law_c_me: LawFit | None,
    law_c_llm: LawFit | None,
    curve: Sequence[BalancePoint],
    observed: pd.DataFrame,
    D_target: float,
    notes: Sequence[str],
) -> dict[str, Any]:
    """Laws with coefficients, intervals and statuses; signs of gamma; complex cases; how far D is extrapolated."""
    return {
        "laws": {"p": _law(law_p), "c_me": _law(law_c_me), "c_llm": _law(law_c_llm)},
        "gamma": {"me": _gamma(law_c_me), "llm": _gamma(law_c_llm)},
        "undefined_r_llm": [point.r_llm for point in curve if point.problem is not None],
        "share_undefined_draws": _mean([point.share_undefined for point in curve]),
        "D_target_over_largest_observed": _extrapolation(observed, D_target),
        "notes": list(notes),
    }


def _law(fit: LawFit | None) -> dict[str, Any] | None:
    if fit is None:
        return None
    return {
        "law": fit.law,
        "coefficients": dict(fit.coefficients),
        "intervals": {symbol: list(interval) for symbol, interval in fit.intervals.items()},
        "statuses": [{"code": s.code, "message": s.message, "severity": s.severity} for s in fit.statuses],
    }


def _gamma(fit: LawFit | None) -> dict[str, float | None] | None:
    if fit is None:
        return None
    draws = ordered_draws(fit)[:, GAMMA]
    return {"value": float(ordered(fit)[GAMMA]), "share_wrong_sign": _mean([float(g >= 0.0) for g in draws])}


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None


def _extrapolation(observed: pd.DataFrame, D_target: float) -> float | None:
    return None if observed.empty else float(D_target / observed["D"].max())
