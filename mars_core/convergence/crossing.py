"""When a falling curve comes down to a level, interpolated in log steps."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def first_step_at(steps: Floats, values: Floats, level: float) -> float | None:
    """First step at which a non-increasing curve is down to `level`, linear in log steps between checkpoints.

    Args:
        steps: optimizer steps, shape (n_checkpoints,), increasing, positive.
        values: the curve at those steps, shape (n_checkpoints,), non-increasing.
        level: what the curve has to come down to, in the curve's unit.

    Returns:
        The step; None if the curve never comes down to the level. A curve that starts at or below the
        level gives its first step, which is then only an upper bound: see `starts_at`.
    """
    reached = np.flatnonzero(values <= level)
    if reached.size == 0:
        return None
    after = int(reached[0])
    if after == 0 or values[after] == level:
        return float(steps[after])
    before = after - 1
    share = (values[before] - level) / (values[before] - values[after])
    return float(steps[before] * (steps[after] / steps[before]) ** share)


def starts_at(values: Floats, level: float) -> bool:
    """Whether the curve is at the level by its first checkpoint, so that its time is too short to be seen."""
    return bool(values[0] <= level)
