"""Fit scaling laws: robust, vectorised, with intervals, held-out error and diagnostics. No torch."""

from mars_core.fitting.choose import FormChoice, FormScore, choose_form
from mars_core.fitting.fit import fit_law
from mars_core.fitting.learning_rate import RateFit, fit_learning_rates
from mars_core.fitting.result import HeldOut, LawFit, Profile, Status

__all__ = [
    "FormChoice",
    "FormScore",
    "HeldOut",
    "LawFit",
    "Profile",
    "RateFit",
    "Status",
    "choose_form",
    "fit_law",
    "fit_learning_rates",
]
