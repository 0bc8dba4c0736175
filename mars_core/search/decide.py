"""The decision: the best pair, a cheaper one that is as good, or that the calibration cannot tell yet.

- The best pair has the smallest expected regret over all pairs.
- A cheaper pair is as good where its excess over the best pair stays within the margin with `SURE` probability. That
  the data show no difference is not enough: few runs show no difference between anything.
- Otherwise the best pair is taken, where pairs that differ by less than `TIE` of the margin in expectation count as one
  and the cheapest of them stands for all; none that freezes a module which the best pair adapts, since what adapters
  still learn beyond the calibration shows least there (RankBench, docs/when-it-pays.md). Where the pair may well not be
  the best (`LIKELY`), the verdict says so, and how many runs per pair would tell.

docs/choosing-ranks.md has the measured error rate of each verdict.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from mars_core.ranks import Pair
from mars_core.search.choice import Verdict
from mars_core.search.outlook import Outlook

SURE = 0.9  # posterior probability at which the promise "within the margin" is made
TIE = 0.5  # of the margin: expected excess that the posterior itself cannot vouch for
LIKELY = 0.8  # that the pair's regret is within the margin (or 0.25%), for the verdict `best`
SMALLEST_MARGIN = 0.0025  # regret that `best` allows, however small the margin
SAME_COST = 0.02  # share of trainable parameters within which balance decides between pairs that are as good
MOST_SEEDS = 12
Z = 1.96


@dataclass(frozen=True)
class Decision:
    """What was decided; the fields are those of `Choice`. best: the pair of the smallest expected regret."""

    pair: Pair
    best: Pair
    verdict: Verdict
    sure: float
    seeds_needed: int | None


def decide(
    outlook: Outlook, parameters: Sequence[int], margin: float, balanced: Collection[Pair], n_seeds: float
) -> Decision:
    """Choose among the pairs of an outlook.

    Args:
        outlook: posterior at the target size.
        parameters: trainable parameters of each pair.
        margin: relative excess that does not matter.
        balanced: pairs next to the balance curve; they break ties of cost.
        n_seeds: calibration runs per pair, on average.
    """
    at_best = int(np.argmin(outlook.expected_regret))
    best = outlook.pairs[at_best]
    excess = outlook.excess_over(best)
    within = (excess <= margin).mean(axis=0)
    cheaper = [i for i in range(len(parameters)) if parameters[i] < parameters[at_best] and margin > 0]
    as_good = [i for i in cheaper if within[i] >= SURE]
    if as_good:
        taken = _cheapest(outlook, parameters, as_good, balanced)
        return Decision(outlook.pairs[taken], best, "as good and cheaper", float(within[taken]), None)
    tied = [i for i in cheaper if excess[:, i].mean() <= TIE * margin and not _freezes(outlook.pairs[i], best)]
    taken = _cheapest(outlook, parameters, [at_best, *tied], balanced)
    allowed = max(margin, SMALLEST_MARGIN)
    likely = float((outlook.regret[:, taken] <= allowed).mean())
    if likely >= LIKELY:
        return Decision(outlook.pairs[taken], best, "best", likely, None)
    needed = seeds_to_tell(outlook, outlook.pairs[taken], allowed, n_seeds)
    return Decision(outlook.pairs[taken], best, "cannot tell", likely, needed)


def seeds_to_tell(outlook: Outlook, pair: Pair, margin: float, n_seeds: float) -> int | None:
    """Runs per pair at which the strongest rival of a pair would be told from it, None above `MOST_SEEDS`.

    The spread of a difference falls with the root of the number of runs, and has to come down to the difference itself,
    or to the margin where the difference is smaller. An estimate: the spread also holds what no seed measures, such as
    how the difference goes on beyond the calibrated sizes.
    """
    order = [outlook.pairs[i] for i in np.argsort(outlook.expected_regret) if outlook.pairs[i] != pair]
    if not order:
        return None
    excess = outlook.excess_over(pair)[:, outlook.pairs.index(order[0])]
    ratio = Z * float(excess.std()) / max(float(abs(excess.mean())), margin)
    needed = max(math.ceil(n_seeds * ratio**2), math.ceil(n_seeds) + 1)
    return needed if needed <= MOST_SEEDS else None


def _freezes(pair: Pair, other: Pair) -> bool:
    """Whether a pair has no adapter in a module where the other has one."""
    return any(own == 0 < rank for own, rank in zip(pair, other, strict=True))


def _cheapest(outlook: Outlook, parameters: Sequence[int], among: Sequence[int], balanced: Collection[Pair]) -> int:
    """The cheapest pair; of pairs that cost about the same a balanced one, and of equal cost the better one."""
    least = min(parameters[i] for i in among)
    same = [i for i in among if parameters[i] <= (1.0 + SAME_COST) * least]
    return min(same, key=lambda i: (outlook.pairs[i] not in balanced, parameters[i], outlook.expected_regret[i]))
