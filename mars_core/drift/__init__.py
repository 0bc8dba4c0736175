"""What changed between two calibrations of a study: data, laws, choice; and whether it matters. No torch."""

from mars_core.drift.acceptance import Acceptance, Forgotten, ValidationScore, judge_final, judge_forgetting
from mars_core.drift.choice import ChoiceDrift, Excess, compare_choices, excess_of
from mars_core.drift.data import DataDrift, DataSnapshot, compare_data
from mars_core.drift.laws import CoefficientDrift, LawSummary, compare_laws
from mars_core.drift.markdown import Night, night_as_markdown, quiet_night_as_markdown

__all__ = [
    "Acceptance",
    "ChoiceDrift",
    "CoefficientDrift",
    "DataDrift",
    "DataSnapshot",
    "Excess",
    "Forgotten",
    "LawSummary",
    "Night",
    "ValidationScore",
    "compare_choices",
    "compare_data",
    "compare_laws",
    "excess_of",
    "judge_final",
    "judge_forgetting",
    "night_as_markdown",
    "quiet_night_as_markdown",
]
