"""HyDRA's iterative enhancement: train schedules, learn from them, train the most promising ones, and so on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from mars_core.layerwise.performance.encoding import Array
from mars_core.layerwise.performance.predictors import Predictor
from mars_core.ranks import LayerRanks

POOL = 512
"""Schedules that are drawn for every proposal."""


@dataclass(frozen=True)
class Enhanced:
    """What came of it. tried: schedules in the order that they were trained. metrics: theirs, shape (n, m); lower is
    better. best: number of the one with the lowest mean of standardised metrics among `tried`. ended: why."""

    tried: tuple[LayerRanks, ...]
    metrics: Array
    best: int
    ended: Literal["runs spent", "proposal repeated"]


def enhance(
    draw: Callable[[np.random.Generator], LayerRanks],
    encoded: Callable[[Sequence[LayerRanks]], Array],
    train: Callable[[Sequence[LayerRanks]], Array],
    make: Callable[[], Predictor],
    *,
    first: int,
    each: int,
    runs: int,
    seed: int = 0,
) -> Enhanced:
    """Propose and train schedules until the runs are spent, or what looks best has been trained already.

    Args:
        draw: Gives a schedule of the solution space.
        encoded: Makes schedules what the model learns from, shape (n, T, F).
        train: Trains schedules, in one pack, and gives their metrics, shape (n, m).
        make: Gives a performance model that has learned nothing.
        first: Schedules that are drawn and trained before the model knows anything.
        each: Schedules that are trained between two fits.
        runs: Schedules that are trained in all.
        seed: Of what is drawn.

    Raises:
        ValueError: the numbers make no sense.
    """
    if not 2 <= first <= runs or each < 1:
        raise ValueError(
            f"the first of {runs} runs must be 2 or more, then 1 or more at a time; got {first} and {each}"
        )
    random = np.random.default_rng(seed)
    tried = _distinct(draw, random, first)
    metrics = train(tried)
    while len(tried) < runs:
        pool = _distinct(draw, random, POOL)
        order = np.argsort(_predicted(make(), encoded(tried), metrics, encoded(pool)), kind="stable")
        if pool[int(order[0])] in tried:
            return Enhanced(tuple(tried), metrics, _best(metrics), "proposal repeated")
        new = [pool[int(number)] for number in order if pool[int(number)] not in tried]
        new = new[: min(each, runs - len(tried))]
        tried, metrics = [*tried, *new], np.concatenate([metrics, train(new)])
    return Enhanced(tuple(tried), metrics, _best(metrics), "runs spent")


def _distinct(
    draw: Callable[[np.random.Generator], LayerRanks], random: np.random.Generator, wanted: int
) -> list[LayerRanks]:
    """So many different schedules, or as many as a long search finds."""
    found: dict[LayerRanks, None] = {}
    for _ in range(20 * wanted):
        if len(found) == wanted:
            break
        found[draw(random)] = None
    return list(found)


def _predicted(model: Predictor, x: Array, metrics: Array, pool: Array) -> Array:
    model.fit(x, _standardised(metrics))
    predicted: Array = model.predict(pool).mean(axis=1)
    return predicted


def _standardised(metrics: Array) -> Array:
    spread = metrics.std(axis=0)
    found: Array = (metrics - metrics.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    return found


def _best(metrics: Array) -> int:
    return int(_standardised(metrics).mean(axis=1).argmin())
