"""Choose the rank pair: balance (law C), predicted loss (law P), and a verdict with its reason. No torch."""

from mars_core.search.balance import BalancePoint, balance_curve, balance_log_rank
from mars_core.search.choice import Candidate, Choice, Dropped, Source
from mars_core.search.choose import choose_pair
from mars_core.search.constraints import (
    AllowedRanks,
    Constraint,
    Diverged,
    MaxAdapterBytes,
    MaxTrainableParameters,
    NoPairLeft,
    SameParametersAsUniform,
)
from mars_core.search.stability import Stability, stability_of, stability_over_draws, stability_over_seeds

__all__ = [
    "AllowedRanks",
    "BalancePoint",
    "Candidate",
    "Choice",
    "Constraint",
    "Diverged",
    "Dropped",
    "MaxAdapterBytes",
    "MaxTrainableParameters",
    "NoPairLeft",
    "SameParametersAsUniform",
    "Source",
    "Stability",
    "balance_curve",
    "balance_log_rank",
    "choose_pair",
    "stability_of",
    "stability_over_draws",
    "stability_over_seeds",
]
