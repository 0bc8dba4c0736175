"""Scaling laws: one file per law, one signature (`Law`). NumPy and SciPy only."""

from mars_core.laws.law import Law, Term, describe
from mars_core.laws.learning_rate import LearningRateLaw
from mars_core.laws.registry import LAWS, get_law

__all__ = ["LAWS", "Law", "LearningRateLaw", "Term", "describe", "get_law"]
