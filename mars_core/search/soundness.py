"""Whether a fitted law may decide: the causes of a fallback."""

import numpy as np

from mars_core.fitting import LawFit
from mars_core.search.balance import ordered

NO_BETTER = "no_better_than_trivial"

# How many times its rival's held-out error a law may have before it is disqualified. The rival t = c(r) S_D is a
# member of law C's family up to a free level per rank, so where law C is exactly right the two tie, and as the
# rival remembers each run's own level it comes out ahead more often than not (54-79% of planted surfaces). A ratio
# above 3 is rare there and the rule where the rank effect is no power law. docs/choosing-ranks.md has the numbers.
TIE = 3.0


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
        if status.severity == "error" or (status.code == NO_BETTER and not ties_with_rival(fit)):
            return f"{name}: {status.message}"
    return None


def ties_with_rival(fit: LawFit) -> bool:
    """Whether the law's held-out error is of the size of its best trivial rival's (within a factor `TIE`)."""
    held_out = fit.held_out
    if held_out is None or held_out.best_rival is None:
        return False
    return held_out.mape <= TIE * held_out.rivals[held_out.best_rival]
