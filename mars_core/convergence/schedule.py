"""Divide a learning-rate schedule out of a step count."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def steps_at_peak(steps: Floats, learning_rates: Sequence[float] | None) -> Floats:
    """Optimizer steps at the peak learning rate that move the weights as far as the schedule did.

    A schedule that decays to zero stops every module at the end, converged or not. Counted in
    sum of rate / peak rate, the movement no longer depends on the schedule (for small rates).

    Args:
        steps: optimizer steps, shape (n,), 1 is the first.
        learning_rates: rate of every optimizer step from the first, shape (at least the last step,);
            None for a constant rate, which changes nothing.

    Returns:
        Steps at peak, shape (n,), increasing.

    Raises:
        ValueError: the schedule is shorter than the run, or not positive at its first steps.
    """
    if learning_rates is None:
        return steps
    rates = np.asarray(learning_rates, dtype=np.float64)
    if rates.size < steps.max() or rates.min() < 0.0 or rates.max() <= 0.0:
        raise ValueError(
            f"learning_rates must give one rate >= 0 per optimizer step up to step {int(steps.max())}, got "
            f"{rates.size} rates: pass the schedule of the whole run."
        )
    moved = np.cumsum(rates) / rates.max()
    return np.asarray(moved[steps.astype(int) - 1])
