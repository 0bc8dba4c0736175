"""From a continuous balance rank to ranks that can be trained."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

HALF_A_DOUBLING = 0.5 * math.log(2.0)
SAME = 1e-6  # relative difference at which a continuous rank is the available rank


@dataclass(frozen=True)
class Mapped:
    """Available ranks that stand for a continuous one; `how` says in which way; none left has a `reason`."""

    ranks: tuple[int, ...]
    how: tuple[str, ...]
    reason: str | None = None


Interval = tuple[float, float] | None


def both_neighbours(rank: float, interval: Interval, available: Sequence[int]) -> Mapped:
    """The available ranks just below and above; one if it is met exactly; none, with the reason, out of range.

    Out of range, the last available rank stays (`edge`) where the balance rank lies within half a doubling of it
    and its 95% interval reaches it: 16.4, fitted to data that allow 15 to 20, is no ground for dropping 16.
    """
    ranks = sorted(available)
    for candidate in ranks:
        if math.isclose(rank, candidate, rel_tol=SAME):
            return Mapped((candidate,), ("exact",))
    below = [candidate for candidate in ranks if candidate < rank]
    above = [candidate for candidate in ranks if candidate > rank]
    if not below or not above:
        edge = ranks[0] if not below else ranks[-1]
        if _reaches(rank, interval, edge):
            return Mapped((edge,), ("edge",))
        reason = f"balance rank {rank:.3g} lies outside the available vision ranks {ranks[0]} to {ranks[-1]}"
        return Mapped((), (), reason)
    return Mapped((below[-1], above[0]), ("below", "above"))


def _reaches(rank: float, interval: Interval, edge: int) -> bool:
    close = abs(math.log(rank / edge)) <= HALF_A_DOUBLING
    return close and interval is not None and interval[0] <= edge <= interval[1]


def nearest_or_clamped(rank: float, interval: Interval, available: Sequence[int]) -> Mapped:
    """The paper's rule: the closest available rank (the lower one on a tie); out of range it is clamped."""
    ranks = sorted(available)
    nearest = min(ranks, key=lambda candidate: abs(candidate - rank))
    outside = rank < ranks[0] * (1 - SAME) or rank > ranks[-1] * (1 + SAME)
    return Mapped((nearest,), ("clamped" if outside else "nearest",))
