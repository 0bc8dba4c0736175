"""The learning-rate range test: short runs over more than three decades of rates, which say where to look.

A short run prefers a higher rate than a long one, so its best rate is the upper part of what the calibration then
tries, and the ends of that range are widened where the optimum lies there (`design`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from mars_core.ranks import RankPair
from mars_core.rate_search.design import corner_pairs

RANGE = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)
"""Peak rates of the range test: from the paper's to where LoRA diverges, on small models too."""
SHARE = 1 / 16
"""Of a calibration run's steps: how long a run of the range test is."""
FEWEST_STEPS = 16


def range_pairs(ranks_me: Sequence[int], ranks_llm: Sequence[int]) -> tuple[RankPair, ...]:
    """Pairs of the range test: the smallest and the largest, between which the best rate is expected to fall."""
    corners = corner_pairs(ranks_me, ranks_llm)
    return tuple(dict.fromkeys([corners[0], corners[-1]]))


def range_steps(horizon: int) -> int:
    """Optimizer steps of a run of the range test, of at most a calibration run's."""
    return min(horizon, max(FEWEST_STEPS, round(SHARE * horizon)))


def best_of_range(losses: Mapping[float, float]) -> float:
    """The rate at which short runs end lowest, between the measured ones by a parabola in the log rate.

    Args:
        losses: mean final loss by rate; a run that diverged has none (NaN or infinite).

    Raises:
        ValueError: no run ended with a finite loss.
    """
    ended = sorted((math.log(rate), loss) for rate, loss in losses.items() if math.isfinite(loss))
    if not ended:
        raise ValueError(
            f"every run of the learning-rate range test diverged ({min(losses):.0e} to {max(losses):.0e}): "
            "check the data and the base model, or name lower rates in calibration.learning_rates"
        )
    best = min(range(len(ended)), key=lambda at: ended[at][1])
    if best in (0, len(ended) - 1):
        return math.exp(ended[best][0])
    (x0, y0), (x1, y1), (x2, y2) = ended[best - 1 : best + 2]
    left, right = (y0 - y1) / (x1 - x0), (y2 - y1) / (x2 - x1)  # both 0 or more
    if left + right <= 0.0:
        return math.exp(x1)
    return math.exp(x1 + 0.5 * (left * (x2 - x1) - right * (x1 - x0)) / (left + right))
