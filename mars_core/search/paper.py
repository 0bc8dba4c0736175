"""Algorithm 1 of MARS as printed: Eq. 3 per LLM rank, the nearest rank, the smallest predicted loss (Eq. 4).

No margin, no verdict, no test of the laws. A balance rank that is not real takes the default pair. One that lies
outside the available ranks goes to the last of them, which is the closest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mars_core.fitting import LawFit
from mars_core.ranks import Pair
from mars_core.search.balance import BalancePoint
from mars_core.search.points import Points
from mars_core.search.ranks import nearest_or_clamped


@dataclass(frozen=True)
class PaperPick:
    """What Algorithm 1 takes.

    candidates: pairs on the balance curve, each with how it came about, its point of the curve (None for the default
    pair) and law P's loss. cause: why the default pair was taken, None where it was not. dropped: pairs on the curve
    that may not be trained.
    """

    pair: Pair
    candidates: tuple[tuple[Pair, str, BalancePoint | None, float | None], ...]
    cause: str | None
    dropped: tuple[Pair, ...] = ()


def algorithm_1(
    law_p: LawFit | None,
    curve: Sequence[BalancePoint],
    ranks_me: Sequence[int],
    D_target: float,
    default: Pair,
    allowed: Sequence[Pair],
    missing: str | None = None,
) -> PaperPick:
    """Take the pair of Eq. 4 among the candidates of Eq. 3.

    Args:
        law_p: fitted Eq. 1, None if it could not be fitted.
        curve: Eq. 3 at every available LLM rank; empty where law C could not be fitted.
        ranks_me: available vision ranks.
        D_target: unique samples of the full fine-tune.
        default: the default pair; the allowed pair next to it where it is not allowed.
        allowed: pairs that may be trained: the user's constraints, and no run that diverged.
        missing: why a law is missing.
    """
    fallback = min(allowed, key=lambda pair: (float(np.abs(np.log(pair) - np.log(default)).sum()), pair))
    if law_p is None or not curve:
        return PaperPick(fallback, ((fallback, "default pair", None, None),), missing or "a law could not be fitted")
    balanced = [
        ((r_me, point.r_llm), how, point)
        for point in curve
        if point.r_me is not None
        for r_me, how in [nearest_or_clamped(point.r_me, ranks_me)]
    ]
    dropped = tuple(pair for pair, *_ in balanced if pair not in allowed)
    candidates: list[tuple[Pair, str, BalancePoint | None, float]] = [
        (pair, how, point, _loss(law_p, pair, D_target)) for pair, how, point in balanced if pair in allowed
    ]
    undefined = [point for point in curve if point.r_me is None]
    if not candidates:
        cause = undefined[0].problem if undefined else "the constraints allow no pair on the balance curve"
        loss = _loss(law_p, fallback, D_target)
        only = ((fallback, "default pair", None, loss),)
        return PaperPick(fallback, only, f"no candidate is left ({cause})", dropped)
    if undefined:
        candidates.append((fallback, "default pair", None, _loss(law_p, fallback, D_target)))
    best = min(candidates, key=lambda candidate: candidate[3])
    return PaperPick(best[0], tuple(candidates), None, dropped)


def _loss(law_p: LawFit, pair: Pair, D: float) -> float:
    X = {"r_me": np.array([float(pair[0])]), "r_llm": np.array([float(pair[1])]), "D": np.array([float(D)])}
    return float(law_p.predict(X)[0])


def require_one_rate(points: Points) -> None:
    """ValueError where runs have several learning rates: the paper has one, and every run trained with it."""
    if points.rates is not None:
        raise ValueError(
            "rule='paper' is for runs of one learning rate, as in the paper, and these have several: give it the runs "
            "of one of them, or take rule='mars'"
        )
