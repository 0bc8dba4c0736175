"""Law P's say on a list of pairs: predicted loss with interval, expected regret, excess over the best.

| symbol | meaning | shape |
|---|---|---|
| loss | fitted prediction per pair of the objective's quantity: nats per answer token for perplexity | (n_pairs,) |
| draws | the same per bootstrap draw | (n_draws, n_pairs) |
| regret | relative excess over the smallest; for perplexity exp(loss - smallest loss) - 1 | as `draws` |
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mars_core.fitting import LawFit
from mars_core.search.choice import Candidate, Pair, Source
from mars_core.search.constraints import CountParameters
from mars_core.search.objective import PERPLEXITY_OBJECTIVE, Objective

Floats = NDArray[np.float64]

INTERVAL = (2.5, 97.5)  # percent
FEWEST_DRAWS = 20  # below, quantiles of the draws say nothing


@dataclass(frozen=True)
class Scores:
    """Law P on the pairs; `best` is the index of the smallest expected regret.

    `has_spread`: whether there are draws enough to bound anything; without them regrets are those of the fit.
    """

    loss: Floats
    interval: Floats | None
    regret: Floats
    excess_upper: Floats
    best: int
    has_spread: bool


def score(law_p: LawFit, pairs: Sequence[Pair], D: float, objective: Objective = PERPLEXITY_OBJECTIVE) -> Scores:
    """Score the pairs at size D."""
    X = {
        "r_me": np.array([r_me for r_me, _ in pairs], dtype=np.float64),
        "r_llm": np.array([r_llm for _, r_llm in pairs], dtype=np.float64),
        "D": np.full(len(pairs), float(D)),
    }
    loss = law_p.predict(X)
    has_spread = len(law_p.draws) >= FEWEST_DRAWS
    draws = law_p.predict_draws(X) if has_spread else loss[None, :]
    regret = expected_regret(draws, objective)
    best = int(np.argmin(regret))
    excess = objective.excess(draws, draws[:, [best]])
    return Scores(
        loss=loss,
        interval=np.percentile(draws, INTERVAL, axis=0).T if has_spread else None,
        regret=regret,
        excess_upper=np.percentile(excess, INTERVAL[1], axis=0),
        best=best,
        has_spread=has_spread,
    )


def expected_regret(draws: Floats, objective: Objective = PERPLEXITY_OBJECTIVE) -> Floats:
    """Mean over draws of the relative excess over each draw's best pair, shape (n_pairs,)."""
    return np.asarray(objective.excess(draws, draws.min(axis=1, keepdims=True)).mean(axis=0))


def candidates_of(
    scores: Scores,
    pairs: Sequence[Pair],
    sources: Mapping[Pair, Source],
    count: CountParameters,
    objective: Objective = PERPLEXITY_OBJECTIVE,
) -> tuple[Candidate, ...]:
    """The scored pairs as candidates, in the order given."""
    return tuple(_candidate(scores, i, pair, sources[pair], count, objective) for i, pair in enumerate(pairs))


def _candidate(
    scores: Scores, i: int, pair: Pair, source: Source, count: CountParameters, objective: Objective
) -> Candidate:
    interval = None if scores.interval is None else (float(scores.interval[i, 0]), float(scores.interval[i, 1]))
    return Candidate(
        pair=pair,
        loss=float(scores.loss[i]),
        loss_interval=interval,
        perplexity=objective.perplexity(float(scores.loss[i])),
        expected_regret=float(scores.regret[i]),
        excess_upper_bound=float(scores.excess_upper[i]),
        trainable_parameters=count(pair),
        source=source,
    )


def cheaper_within_margin(scores: Scores, parameters: Sequence[int], margin: float) -> int:
    """Index of the cheapest pair whose excess loss is surely below the margin; the best itself if there is none.

    Surely: the upper bound of its excess over the best pair stays below `margin` (relative excess).
    Overlapping intervals alone are no reason, and without bootstrap draws nothing is sure.
    """
    if not scores.has_spread:
        return scores.best
    cheaper = [
        i for i in range(len(parameters)) if parameters[i] < parameters[scores.best] and scores.excess_upper[i] < margin
    ]
    return min([scores.best, *cheaper], key=lambda i: (parameters[i], scores.regret[i]))
