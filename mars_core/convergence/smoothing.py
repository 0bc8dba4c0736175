"""Make a validation curve monotone: isotonic regression against log steps."""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

Floats = NDArray[np.float64]


def falling_curve(loss: Floats) -> Floats:
    """Closest non-increasing curve to a run's losses, up to the run's lowest point and flat after it.

    Least squares with equal weights: checkpoints are geometric, so equal weight per checkpoint is equal
    weight per unit of log steps. What follows the lowest point is no longer convergence (over-fitting,
    divergence); kept in the regression it would be averaged into the earlier steps.

    Args:
        loss: validation loss at increasing steps, shape (n_checkpoints,), nats per answer token, finite.

    Returns:
        Non-increasing losses, shape (n_checkpoints,).
    """
    lowest = int(np.argmin(loss))
    fitted = isotonic_regression(loss[: lowest + 1], increasing=False).x
    return np.concatenate([fitted, np.full(loss.size - lowest - 1, fitted[-1])])
