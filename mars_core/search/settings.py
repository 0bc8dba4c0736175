"""The settings of a choice, checked before anything is fitted."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any

from mars_core.ranks import Pair

LARGEST_SIZE = 1e12  # samples; what is above is a slip of units, not a dataset


def as_float(value: Any) -> float:
    """A finite real number as float; NaN for anything else."""
    if not isinstance(value, Real):
        return math.nan
    try:
        number = float(value)
    except OverflowError:  # a whole number beyond floats
        return math.nan
    return number if math.isfinite(number) else math.nan


def as_rank(value: Any) -> int:
    """A whole, positive rank; 0 for anything else."""
    number = as_float(value)
    return int(number) if number >= 1 and number.is_integer() else 0


def require_target(target_samples: object) -> None:
    """ValueError unless it is a size that a dataset may have."""
    if not 0 < as_float(target_samples) <= LARGEST_SIZE:
        raise ValueError(
            f"target_samples must be positive and at most {LARGEST_SIZE:.0e}, got {target_samples!r}: give the unique "
            "samples of the final run as a number."
        )


def require_margin(margin: object) -> None:
    """ValueError unless it is a share in [0, 1)."""
    if not 0 <= as_float(margin) < 1:
        raise ValueError(f"margin must lie in [0, 1), got {margin!r}: 0.0025 is 0.25% of perplexity.")


def require_eps(eps: object) -> None:
    """ValueError unless it is a share in [0, 1)."""
    if not 0 <= as_float(eps) < 1:
        raise ValueError(f"eps must lie in [0, 1), got {eps!r}: it is the share of a run's drop, 0 in the paper.")


def require_rate(learning_rate: object) -> float:
    """The learning rate; ValueError unless it is finite and positive."""
    if not as_float(learning_rate) > 0:
        raise ValueError(
            f"learning_rate must be finite and above 0, got {learning_rate!r}: give a peak rate such as 2e-4."
        )
    return as_float(learning_rate)


def available_ranks(ranks: object, name: str) -> tuple[int, ...]:
    """Ranks that a caller offers, sorted, each once; ValueError unless whole, 0 or more, and one above 0."""
    if isinstance(ranks, (str, bytes)) or not isinstance(ranks, Iterable):
        raise ValueError(f"{name} must be a sequence of ranks such as (8, 16, 32), got {ranks!r}.")
    given = tuple(ranks)
    found = tuple(sorted({as_rank(rank) for rank in given}))
    if not any(found) or any(as_rank(rank) == 0 and as_float(rank) != 0 for rank in given):
        raise ValueError(f"{name} must be whole ranks of 0 or more and at least one above 0, got {given}.")
    return found


def reference_ranks(reference: object) -> Pair:
    """The reference pair; ValueError unless it is two whole, positive ranks."""
    ranks = [as_rank(rank) for rank in reference] if isinstance(reference, Sequence) else []
    if len(ranks) != 2 or 0 in ranks:
        raise ValueError(
            f"reference must be two whole ranks of 1 or more, such as (16, 16) for (r_me, r_llm), got {reference!r}."
        )
    return ranks[0], ranks[1]
