"""Fit scaling laws: robust, vectorised, with intervals, held-out error and diagnostics. No torch."""

from mars_core.fitting.fit import fit_law
from mars_core.fitting.result import HeldOut, LawFit, Profile, Status

__all__ = ["HeldOut", "LawFit", "Profile", "Status", "fit_law"]
