"""The decision: the best pair, a cheaper one that is as good, or that the calibration cannot tell yet.

- The best pair has the smallest expected regret over all pairs.
- A cheaper pair is taken where its excess over the best pair stays within the margin with `SURE` probability. That the
  data show no difference is not enough: few runs show no difference between anything.
- Otherwise the best pair is taken. Where it may well not be the best (`LIKELY`), the verdict says so, and how many
  runs per pair would tell.

docs/choosing-ranks.md has the measured error rate of each verdict.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from mars_core.search.choice import Pair, Verdict
from mars_core.search.outlook import Outlook

SURE = 0.9  # posterior probability at which the promise "within the margin" is made
LIKELY = 0.6  # that the pair's regret is within the margin (or 0.25%), for the verdict `best`
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
    best = outlook.pairs[int(np.argmin(outlook.expected_regret))]
    at_best = outlook.pairs.index(best)
    within = (outlook.excess_over(best) <= margin).mean(axis=0)
    cheaper = [i for i in range(len(parameters)) if parameters[i] < parameters[at_best] and within[i] >= SURE]
    taken = _cheapest(outlook.pairs, parameters, cheaper, balanced) if cheaper and margin > 0 else at_best
    allowed = max(margin, SMALLEST_MARGIN)
    likely = float((outlook.regret[:, taken] <= allowed).mean())
    if taken != at_best:
        return Decision(outlook.pairs[taken], best, "as good and cheaper", float(within[taken]), None)
    if likely >= LIKELY:
        return Decision(best, best, "best", likely, None)
    return Decision(best, best, "cannot tell", likely, seeds_to_tell(outlook, best, allowed, n_seeds))


def seeds_to_tell(outlook: Outlook, best: Pair, margin: float, n_seeds: float) -> int | None:
    """Runs per pair at which the pair that is next to the best would be told from it, None above `MOST_SEEDS`.

    The spread of a difference falls with the root of the number of runs. It has to come down to the difference itself,
    or to the margin where the difference is smaller: an estimate of power at one time the standard error's 95% bound.
    """
    excess = outlook.excess_over(best)
    next_best = int(np.argsort(outlook.expected_regret)[1]) if len(outlook.pairs) > 1 else 0
    spread, difference = float(excess[:, next_best].std()), float(abs(excess[:, next_best].mean()))
    needed = math.ceil(n_seeds * (Z * spread / max(difference, margin)) ** 2)
    needed = max(needed, math.ceil(n_seeds) + 1)
    return needed if needed <= MOST_SEEDS else None


def _cheapest(
    pairs: Sequence[Pair], parameters: Sequence[int], among: Sequence[int], balanced: Collection[Pair]
) -> int:
    least = min(parameters[i] for i in among)
    same = [i for i in among if parameters[i] <= (1.0 + SAME_COST) * least]
    return min(same, key=lambda i: (pairs[i] not in balanced, parameters[i]))
