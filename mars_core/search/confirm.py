"""Which pairs to train again before one is chosen, and at which rates: the rule of a calibration's last rounds.

A single run of a pair has its luck, and a pair that was tried at one rate has a best rate of its own that no law
knows. So the pairs that may be best are trained with further seeds, by turns above and below their best rate: both
together tell the best rate, and each tells what the pair reaches. In a seed half of the pairs are above and half below,
so that what the seed does to all of them is not taken for the rate's work.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from mars_core.fitting.learning_rate import RateFit
from mars_core.ranks import Pair
from mars_core.rate_search import Confirmation
from mars_core.rate_search.design import rounded
from mars_core.search.objective import Objective
from mars_core.search.outlook import Outlook, read_calibration
from mars_core.search.points import Points

ENOUGH = 0.005
"""Regret of the best guess, its rate's part included, below which (95% bound) no further runs are needed."""
BOUND = 95.0
"""Percent."""
TOGETHER = 0.95
"""Share of the expected regret that lies with the pairs that are trained again."""
FEWEST = 6
"""Pairs of which even a small round holds one run above and one below."""
BESIDE = math.sqrt(2.0)
"""Factor by which they are trained above and below their best rate."""


@dataclass(frozen=True)
class Budget:
    """What rounds that train pairs again may take, in runs.

    first: of the first round; a later one has as many, or as all before it together, so that few rounds do where much
    is needed. most: of all rounds together.
    """

    first: int
    most: int

    @classmethod
    def of(cls, pairs: int, seeds: int, each: int) -> Budget:
        """`each`: at most so many runs for every pair and seed of the calibration."""
        return cls(pairs * seeds, pairs * seeds * each)


def measured_outlook(points: Points, objective: Objective) -> Outlook:
    """The posterior of all pairs that have runs, at the largest size that was measured: what more runs can tell."""
    pairs = sorted({(int(a), int(b)) for a, b in zip(points.runs["r_me"], points.runs["r_llm"], strict=True)})
    return read_calibration(points, pairs, objective).at(float(points.runs["D"].max()), pairs)


def confirmations(
    outlook: Outlook,
    rates: RateFit,
    seeds: Collection[int],
    spent: int,
    rounds: Budget,
    diverged: Mapping[Pair, Collection[float]] = MappingProxyType({}),
) -> tuple[Confirmation, ...]:
    """Runs that are still needed before a pair and its rate are stated; none where they would change nothing, or where
    what may be spent on them is spent.

    Args:
        outlook: the posterior of the runs so far, at the largest size that was measured.
        rates: the learning-rate law of the same runs.
        seeds: those that runs were trained with.
        spent: runs of such rounds so far.
        rounds: what they may take.
        diverged: rates at which a run of a pair diverged; no such rate or a higher one is tried again.
    """
    if len(outlook.pairs) == 1 or spent >= rounds.most or regret_bound(outlook, rates) <= ENOUGH:
        return ()
    runs = min(rounds.most - spent, max(rounds.first, spent))
    again = rivals(outlook, max(FEWEST, runs // 2))
    once = 2 * len(again)
    if once > rounds.most - spent:
        return ()
    best = {pair: float(np.exp(rates.best(pair, outlook.D_target)[0])) for pair in again}
    twice = max(1, runs // once)
    first = max(seeds) + 1
    return tuple(
        Confirmation(pair, first + number, _beside(best[pair], number + at, diverged.get(pair, ())))
        for number in range(2 * twice)
        for at, pair in enumerate(again)
    )


def regret_bound(outlook: Outlook, rates: RateFit) -> float:
    """95% bound of the regret of the pair of the smallest expected regret, trained at its best rate as fitted."""
    at = int(np.argmin(outlook.expected_regret))
    pair, size = [outlook.pairs[at]], np.array([outlook.D_target])
    spread = rates.best_sd(pair, size)[0]
    off = spread * np.random.default_rng(5).standard_normal((len(outlook.value), len(spread)))
    paid = (rates.law.curvature(rates.phi, pair, size) * off**2).sum(axis=1)
    return float(np.percentile(np.expm1(np.log1p(outlook.regret[:, at]) + paid), BOUND))


def rivals(outlook: Outlook, most: int) -> list[Pair]:
    """The pair of the smallest expected regret, and those to which it would lose nearly all of that regret; at most so
    many."""
    at = int(np.argmin(outlook.expected_regret))
    best_in_draw, regret = outlook.regret.argmin(axis=1), outlook.regret[:, at]
    lost = np.array([regret[best_in_draw == other].sum() for other in range(len(outlook.pairs))])
    order = [int(other) for other in np.argsort(-lost, kind="stable") if other != at]
    needed = int(np.searchsorted(np.cumsum(lost[order]), TOGETHER * lost.sum())) + 1
    return [outlook.pairs[pair] for pair in [at, *order[: min(needed, most - 1)]]]


def _beside(best: float, number: int, diverged: Collection[float]) -> float:
    """Above and below by turns; below twice where a run diverged above."""
    above, below = rounded(best * BESIDE), rounded(best / BESIDE)
    return above if number % 2 == 0 and above < min(diverged, default=math.inf) else below
