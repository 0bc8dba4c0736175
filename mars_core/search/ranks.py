"""From a continuous balance rank to ranks that can be trained."""

import math
from collections.abc import Sequence

SAME = 1e-6  # relative difference at which a continuous rank is the available rank


def neighbours(rank: float, available: Sequence[int]) -> tuple[int, ...]:
    """The available ranks just below and above a balance rank; one if it is met exactly; none out of range."""
    ranks = sorted(available)
    met = [candidate for candidate in ranks if math.isclose(rank, candidate, rel_tol=SAME)]
    below = [candidate for candidate in ranks if candidate < rank]
    above = [candidate for candidate in ranks if candidate > rank]
    if met:
        return (met[0],)
    return (below[-1], above[0]) if below and above else ()


def nearest_or_clamped(rank: float, available: Sequence[int]) -> tuple[int, str]:
    """The paper's rule: the closest available rank (the lower one on a tie) and how it was met.

    Out of range that is the last rank, `clamped`; else `nearest`.
    """
    ranks = sorted(available)
    nearest = min(ranks, key=lambda candidate: abs(candidate - rank))
    outside = rank < ranks[0] * (1 - SAME) or rank > ranks[-1] * (1 + SAME)
    return nearest, "clamped" if outside else "nearest"


def positive(ranks: Sequence[int]) -> tuple[int, ...]:
    """Ranks that a power law reaches."""
    return tuple(rank for rank in ranks if rank > 0)
