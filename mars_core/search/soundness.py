"""Whether a fitted law C may speak for the balance condition."""

import numpy as np

from mars_core.fitting import LawFit
from mars_core.search.balance import ordered

# It disqualifies law C: it cannot say how time depends on the rank, which is all the balance asks of it.
# docs/law-diagnostics.md has the measured false-alarm and detection rates.
NO_BETTER = "no_better_than_trivial"


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
    return _disqualifying_status(fit, f"law C of the {module}")


def _disqualifying_status(fit: LawFit, name: str) -> str | None:
    for status in fit.statuses:
        if status.severity == "error" or status.code == NO_BETTER:
            return f"{name}: {status.message}"
    return None
