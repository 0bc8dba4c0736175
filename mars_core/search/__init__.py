"""Choose the rank pair: posterior of every pair at the target size, a verdict with its reason. No torch."""

from mars_core.search.balance import BalancePoint, balance_curve, balance_log_rank
from mars_core.search.choice import Candidate, Choice, Dropped, Rival, Source
from mars_core.search.choose import Question, choose_from, choose_ranks
from mars_core.search.constraints import (
    AllowedRanks,
    Constraint,
    Diverged,
    MaxAdapterBytes,
    MaxTrainableParameters,
    NoPairLeft,
    SameParametersAsUniform,
)
from mars_core.search.points import Points, read_points
from mars_core.search.rates import BestRate, FixedRate, RateAnswer

__all__ = [
    "AllowedRanks",
    "BalancePoint",
    "BestRate",
    "Candidate",
    "Choice",
    "Constraint",
    "Diverged",
    "Dropped",
    "FixedRate",
    "MaxAdapterBytes",
    "MaxTrainableParameters",
    "NoPairLeft",
    "Points",
    "Question",
    "RateAnswer",
    "Rival",
    "SameParametersAsUniform",
    "Source",
    "balance_curve",
    "balance_log_rank",
    "choose_from",
    "choose_ranks",
    "read_points",
]
