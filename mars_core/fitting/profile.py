"""Profiles: the best objective with one coefficient held fixed, for a grid of its values."""

from __future__ import annotations

import numpy as np

from mars_core.fitting.conditional import minimise_with_fixed
from mars_core.fitting.result import Profile
from mars_core.fitting.solve import Solution
from mars_core.laws.law import Floats

N_VALUES = 21


def profiles(solution: Solution, low: Floats, high: Floats) -> tuple[Profile, ...]:
    """Profile of the floor and of each exponent, over twice the width of [low, high] per coefficient.

    Args:
        solution: the fit.
        low: lower ends of the coefficients' intervals, internal and centred, (n_params,).
        high: upper ends.
    """
    law = solution.problem.law
    symbols = [s for s in law.symbols if s not in law.scales or s == law.floor]
    return tuple(_profile(solution, symbol, *_range(solution, symbol, low, high)) for symbol in symbols)


def _range(solution: Solution, symbol: str, low: Floats, high: Floats) -> tuple[float, float]:
    """Natural values between which to profile; an interval of no width gets one of 10%."""
    law, at = solution.problem.law, solution.problem.law.index(symbol)
    centre, ends = solution.phi[at], np.array([low[at], high[at]])
    lower, upper = solution.problem.lower[at], solution.problem.upper[at]
    if symbol in law.scales:
        centre, ends, lower, upper = (np.exp(value) for value in (centre, ends, lower, upper))
    width = max(2.0 * float(ends[1] - ends[0]), 0.1 * abs(float(centre)), 1e-6)
    return max(float(lower), float(centre) - width), min(float(upper), float(centre) + width)


def _profile(solution: Solution, symbol: str, start: float, stop: float) -> Profile:
    law = solution.problem.law
    values = np.linspace(start, stop, N_VALUES)
    fixed = np.log(values) if symbol in law.scales else values
    minima = minimise_with_fixed(solution.problem, solution.phi, law.index(symbol), fixed)
    return Profile(symbol, tuple(values.tolist()), tuple(minima.objective.tolist()))
