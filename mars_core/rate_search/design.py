"""Which rates each rank pair is calibrated at, without a full grid of pairs and rates.

Anchors (the corners of the grid and the reference pair) are tried at several rates: they show how the best rate goes
with the ranks and what another rate costs. Every other pair is tried at one rate, the one that the law predicts for it;
the law then brings all pairs to their best rates. Where the optimum lies at the edge of what an anchor was tried at,
the range is widened; where a pair's own runs all lie far from what became its best rate, it gets one more there.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from mars_core.ranks import Pair, RankPair

FACTOR = 2.0
"""Between neighbouring rates."""
ANCHOR_STEPS = (-2, -1, 0, 1)
"""Rates of an anchor about the range test's best one, in factors: a long run prefers lower rates than a short one."""
SLOPE = -0.2
"""Of the log of the best rate in either log rank, before anything is known of it (`mars_core.laws.learning_rate`)."""
FEWEST_RATES = 3
"""Of a pair, before the lowest of its runs says where the range ends."""
FAR = math.log(FACTOR) * 0.75
"""Distance in log rate from a pair's best one at which a run says too little of it."""

MOST_ROUNDS = 3
"""Of full-length runs, the first one and those that widen it: more would follow the scatter of single runs. Rounds that
confirm come after them (`mars_core.search.confirm`)."""

Tried = Mapping[Pair, Collection[float]]


@dataclass(frozen=True)
class Confirmation:
    """A run that trains a pair again: with a seed that no run had, at a peak rate."""

    pair: Pair
    seed: int
    rate: float


def corner_pairs(ranks_me: Sequence[int], ranks_llm: Sequence[int]) -> tuple[RankPair, ...]:
    """The four corners of the grid of positive ranks, the smallest first and the largest last; distinct ones."""
    me, llm = ([rank for rank in sorted(ranks) if rank > 0] for ranks in (ranks_me, ranks_llm))
    corners = [RankPair(a, b) for a in (me[0], me[-1]) for b in (llm[0], llm[-1])]
    return tuple(dict.fromkeys(corners))


def anchors(pairs: Sequence[RankPair], reference: RankPair) -> tuple[RankPair, ...]:
    """Pairs that are tried at several rates: the corners, the reference pair, and pairs with a module at rank 0.

    Of the latter the largest of either module alone: no law says how a module without adapter moves the best rate.
    """
    positive = [pair for pair in pairs if 0 not in pair]
    found = [*corner_pairs([pair.r_me for pair in positive], [pair.r_llm for pair in positive]), reference]
    frozen_me, frozen_llm = ([pair for pair in pairs if pair[at] == 0] for at in (0, 1))
    found += [max(alone) for alone in (frozen_me, frozen_llm) if alone]
    return tuple(dict.fromkeys(pair for pair in found if pair in pairs))


def first_rates(pairs: Sequence[RankPair], reference: RankPair, best: float) -> dict[RankPair, tuple[float, ...]]:
    """Rates of each pair in the first round.

    Args:
        pairs: all pairs of the calibration.
        reference: pair whose best rate `best` is about.
        best: of the range test.
    """
    several = anchors(pairs, reference)
    return {
        pair: rates_around(_expected(pair, reference, best))
        if pair in several
        else (_at(_expected(pair, reference, best), -0.5),)
        for pair in pairs
    }


def rates_around(best: float) -> tuple[float, ...]:
    """Rates that are tried first where the best one is expected about `best`."""
    return tuple(_at(best, step) for step in ANCHOR_STEPS)


def rate_beyond(tried: Collection[float], wanted: float) -> float | None:
    """The rate to try next where the best one, `wanted`, lies at the edge of those tried; None where it does not."""
    low, high = min(tried), max(tried)
    if wanted <= low * math.sqrt(FACTOR):
        return low / FACTOR
    return high * FACTOR if wanted >= high / math.sqrt(FACTOR) else None


def measured_edge(losses: Mapping[float, float]) -> float | None:
    """The rate at which runs ended lowest, where it is the lowest or the highest of those tried; else None.

    A parabola through all runs can have its bottom inside where the loss falls ever faster towards the edge.

    Args:
        losses: final loss by rate, not a number where runs diverged: beyond a rate that diverged lies no edge.
    """
    ended = [rate for rate, loss in losses.items() if math.isfinite(loss)]
    if len(ended) < FEWEST_RATES:
        return None
    lowest = min(ended, key=lambda rate: losses[rate])
    return lowest if lowest in (min(losses), max(losses)) else None


def missing_rates(
    tried: Tried, best: Mapping[Pair, float], several: Collection[Pair], diverged: Tried = MappingProxyType({})
) -> dict[Pair, tuple[float, ...]]:
    """Rates to try next: beyond the edge of an anchor whose optimum lies there, and at the best rate of a pair that was
    only tried far from it. Empty where nothing is missing.

    Args:
        tried: rates of each pair so far.
        best: best rate of each pair by the law as fitted so far.
        several: the anchors.
        diverged: those of the rates at which a run of the pair diverged; no such rate or a higher one is tried again.
    """
    missing: dict[Pair, tuple[float, ...]] = {}
    for pair, every in tried.items():
        lost = min(diverged.get(pair, ()), default=math.inf)
        rates = [rate for rate in every if rate < lost]
        if not rates:
            missing[pair] = (rounded(min(every) / FACTOR),)
            continue
        wanted = min(best[pair], lost / FACTOR)
        beyond = rate_beyond(rates, wanted) if pair in several else None
        if beyond is not None and beyond < lost:
            missing[pair] = (beyond,)
        elif min(abs(math.log(wanted / rate)) for rate in rates) > FAR:
            missing[pair] = (rounded(wanted),)
    return missing


def rounded(rate: float) -> float:
    """Two significant digits, so that people can read and repeat it."""
    return float(f"{rate:.2g}")


def _expected(pair: RankPair, reference: RankPair, best: float) -> float:
    factors = [rank / at for rank, at in zip(pair, reference, strict=True) if rank > 0 and at > 0]
    return best * float(math.prod(factor**SLOPE for factor in factors))


def _at(rate: float, step: float) -> float:
    return rounded(rate * FACTOR**step)
