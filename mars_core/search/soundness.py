"""Whether a fitted law may decide: the causes of a fallback."""

import math

import numpy as np

from mars_core.fitting import LawFit
from mars_core.search.balance import ordered

NO_BETTER = "no_better_than_trivial"

# A law flagged `no_better_than_trivial` is always marked; it is disqualified where the lost comparison matters.
# Law C: its rival t = c(r) S_D has a free level per rank and remembers each run's own level, so it comes out ahead on
# about nine in ten planted surfaces on which law C is exactly true. What matters is whether law C's held-out error
# could move the balance rank; an error e in ln t moves ln r_me by e / |gamma|, and half a doubling is the limit.
# Law P: a rival without floor ties with it wherever the floor collapses; only a clear loss counts.
# docs/choosing-ranks.md has the measured false-alarm and detection rates.
HALF_A_DOUBLING = 0.5 * math.log(2.0)
CLEAR_LOSS = 3.0


def objection_to_law_c(fit: LawFit | None, module: str, missing: str | None) -> str | None:
    """Why law C of a module cannot be used for balancing; None if it can.

    Args:
        fit: the fit, None if there is none.
        module: `vision encoder` or `LLM`, for the message.
        missing: the caller's reason for a missing fit.
    """
    if fit is None:
        return f"law C of the {module} could not be fitted: {missing or 'no reason given'}"
    k, gamma, delta, E = ordered(fit)
    if not np.all(np.isfinite([k, gamma, delta, E])):
        return f"law C of the {module} has coefficients that are not finite"
    if gamma >= 0.0:
        return (
            f"law C of the {module} has a wrong-signed exponent: gamma = {gamma:.3g}, so higher ranks would not "
            "converge sooner"
        )
    if delta <= 0.0:
        return f"law C of the {module} has a wrong-signed exponent: delta = {delta:.3g}, so more data would be faster"
    return _disqualifying_status(fit, f"law C of the {module}", error_in_log_rank(fit) > HALF_A_DOUBLING)


def objection_to_law_p(fit: LawFit | None, missing: str | None) -> str | None:
    """Why law P cannot rank pairs; None if it can."""
    if fit is None:
        return f"law P could not be fitted: {missing or 'no reason given'}"
    if not np.all(np.isfinite(fit.theta)):
        return "law P has coefficients that are not finite"
    if fit.coefficients.get("beta", 1.0) <= 0.0:
        return "law P has a wrong-signed exponent: beta <= 0, so more data would raise the loss"
    return _disqualifying_status(fit, "law P", ratio_to_best_rival(fit) > CLEAR_LOSS)


def error_in_log_rank(fit: LawFit) -> float:
    """By how much law C's held-out error can move the log of a balance rank: mean relative error / |gamma|."""
    if fit.held_out is None:
        return math.inf
    return fit.held_out.mape / abs(fit.coefficients["gamma"])


def ratio_to_best_rival(fit: LawFit) -> float:
    """Held-out error over that of the best trivial rival."""
    held_out = fit.held_out
    if held_out is None or held_out.best_rival is None:
        return math.inf
    rival = held_out.rivals[held_out.best_rival]
    return held_out.mape / rival if rival > 0.0 else math.inf


def _disqualifying_status(fit: LawFit, name: str, lost_clearly: bool) -> str | None:
    for status in fit.statuses:
        if status.severity == "error" or (status.code == NO_BETTER and lost_clearly):
            return f"{name}: {status.message}"
    return None
