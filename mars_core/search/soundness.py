"""Whether a fitted law may decide: the causes of a fallback."""

import math

import numpy as np

from mars_core.fitting import LawFit
from mars_core.search.balance import ordered

NO_BETTER = "no_better_than_trivial"
NO_DIFFERENCES = "differences_not_predicted"
NOT_VALIDATED = "not_validated"

# `no_better_than_trivial` disqualifies law C: it cannot say how time depends on the rank, which is all the balance
# asks of it. Law P's rival without floor ties with it wherever the floor collapses; only a clear loss counts there.
# Its rival without ranks is judged by the differences between pairs, `differences_not_predicted`: an error that all
# pairs have in common ranks none of them. docs/law-diagnostics.md has the measured false-alarm and detection rates.
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
    return _disqualifying_status(fit, f"law C of the {module}", no_better_counts=True)


def objection_to_law_p(fit: LawFit | None, missing: str | None) -> str | None:
    """Why law P cannot rank pairs; None if it can."""
    if fit is None:
        return f"law P could not be fitted: {missing or 'no reason given'}"
    if not np.all(np.isfinite(fit.theta)):
        return "law P has coefficients that are not finite"
    if fit.coefficients.get("beta", 1.0) <= 0.0:
        return "law P has a wrong-signed exponent: beta <= 0, so more data would raise the loss"
    return _disqualifying_status(fit, "law P", no_better_counts=ratio_to_best_rival(fit) > CLEAR_LOSS)


def cannot_rank(law_p: LawFit | None) -> bool:
    """Whether held-out points show that law P's differences between pairs are no better than no differences."""
    return law_p is not None and law_p.has(NO_DIFFERENCES)


def unvalidated(fit: LawFit | None) -> bool:
    """Whether no held-out points could test a fitted law against its trivial rivals."""
    return fit is not None and fit.has(NOT_VALIDATED)


def ratio_to_best_rival(fit: LawFit) -> float:
    """Held-out error over that of the best trivial rival."""
    held_out = fit.held_out
    if held_out is None or held_out.best_rival is None:
        return math.inf
    rival = held_out.rivals[held_out.best_rival]
    return held_out.mape / rival if rival > 0.0 else math.inf


def _disqualifying_status(fit: LawFit, name: str, no_better_counts: bool) -> str | None:
    for status in fit.statuses:
        if status.severity == "error" or (status.code == NO_BETTER and no_better_counts):
            return f"{name}: {status.message}"
    return None
