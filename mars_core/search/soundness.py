"""Whether a fitted law may decide: the causes of a fallback."""

import numpy as np

from mars_core.fitting import LawFit
from mars_core.search.balance import ordered

DISQUALIFYING = frozenset({"too_few_points", "no_better_than_trivial"})


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
    return _objection_in_statuses(fit, f"law C of the {module}")


def objection_to_law_p(fit: LawFit | None, missing: str | None) -> str | None:
    """Why law P cannot rank pairs; None if it can."""
    if fit is None:
        return f"law P could not be fitted: {missing or 'no reason given'}"
    if not np.all(np.isfinite(fit.theta)):
        return "law P has coefficients that are not finite"
    if fit.coefficients.get("beta", 1.0) <= 0.0:
        return "law P has a wrong-signed exponent: beta <= 0, so more data would raise the loss"
    return _objection_in_statuses(fit, "law P")


def _objection_in_statuses(fit: LawFit, name: str) -> str | None:
    for status in fit.statuses:
        if status.severity == "error" or status.code in DISQUALIFYING:
            return f"{name}: {status.message}"
    return None
