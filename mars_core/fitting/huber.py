"""Huber loss on log residuals, and the likelihood of right-censored targets under the same noise.

Huber's loss H(r) with threshold delta is, up to a scale s, the negative log density of a noise that is
Gaussian inside [-delta, delta] and has exponential tails outside: p(r) = exp(-H(r) / s) / Z. An observed
point adds H(r). A point known only to lie beyond its recorded value adds the tail it leaves,
-s * ln P(noise > v), with v the recorded minus the predicted logarithm: for a prediction far below the
recorded value this is H(v) again, for one far above it nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr, ndtr

Floats = NDArray[np.float64]


class LossParts(NamedTuple):
    """Value, derivative and two curvatures of a loss in r = predicted - observed log, elementwise.

    `curvature` is the true second derivative, `majorant` that of the tightest parabola above the loss
    that touches it at r (iteratively reweighted least squares).
    """

    value: Floats
    slope: Floats
    curvature: Floats
    majorant: Floats


def huber(residual: Floats, delta: float) -> LossParts:
    """Huber loss: r^2 / 2 inside delta, delta * (|r| - delta / 2) outside."""
    slope = np.minimum(np.maximum(residual, -delta), delta)
    size = np.abs(residual)
    value = slope * (residual - 0.5 * slope)
    return LossParts(value, slope, (size <= delta).astype(np.float64), delta / np.maximum(size, delta))


def censored_huber(residual: Floats, delta: float, scale: float) -> LossParts:
    """Loss of right-censored points: -scale * ln P(noise > -residual), normalised to 0 far above.

    Args:
        residual: predicted minus recorded log target (the recorded value is a lower limit of the true one).
        delta: Huber threshold.
        scale: s above, the noise's temperature in units of the Huber loss.

    Returns:
        value, slope and curvatures; the slope is never positive (a prediction above the limit is no error).
    """
    log_tail, log_density = _log_upper_tail(-residual, delta, scale)
    hazard = np.exp(log_density - log_tail)
    slope = -scale * hazard
    # d(slope)/dr: hazard' = hazard * (hazard - H'(v)/s), v = -r; log-concave noise makes it >= 0.
    pull = np.clip(-residual, -delta, delta) / scale
    curvature = np.maximum(scale * hazard * (hazard - pull), 0.0)
    majorant = np.maximum(delta / np.maximum(np.abs(residual), delta), curvature)
    return LossParts(-scale * log_tail, slope, curvature, majorant)


def noise_scale(residual: Floats, weights: Floats, delta: float) -> float:
    """Maximum-likelihood s of exp(-H(r) / s) / Z for given residuals, by a scalar search in ln s."""
    total = float(np.sum(weights))
    mean_loss = float(np.sum(weights * huber(residual, delta).value) / max(total, 1e-300))
    if mean_loss <= 0:
        return 1e-12
    grid = np.log(mean_loss) + np.linspace(-3.0, 4.0, 281)
    scales = np.exp(grid)
    cost = mean_loss / scales + _log_normaliser(delta, scales)
    return float(scales[np.argmin(cost)])


def _log_normaliser(delta: float, scale: Floats | float) -> Floats:
    """ln Z of exp(-H(r)/s): a Gaussian core and two exponential tails."""
    s = np.asarray(scale, dtype=np.float64)
    sigma = np.sqrt(s)
    core = np.sqrt(2 * np.pi) * sigma * (2 * ndtr(delta / sigma) - 1)
    tails = 2 * (s / delta) * np.exp(-(delta**2) / (2 * s))
    return np.asarray(np.log(core + tails))


def _log_upper_tail(v: Floats, delta: float, scale: float) -> tuple[Floats, Floats]:
    """ln P(noise > v) and ln p(v), elementwise."""
    log_z = float(_log_normaliser(delta, scale))
    log_density = -huber(v, delta).value / scale - log_z
    size = np.maximum(np.abs(v), delta)
    far = np.log(scale / delta) - delta * (size - 0.5 * delta) / scale - log_z  # tail beyond max(|v|, delta)
    sigma = np.sqrt(scale)
    inner = np.clip(np.abs(v), 0.0, delta)
    log_core = np.log(np.sqrt(2 * np.pi) * sigma) - log_z
    log_from, log_to = log_ndtr(-inner / sigma), log_ndtr(-delta / sigma)
    with np.errstate(divide="ignore"):  # nothing lies between |v| and delta: ln 0 = -inf is meant
        log_between = log_core + log_from + np.log1p(-np.exp(log_to - log_from))
    beyond = np.logaddexp(far, log_between)  # ln P(noise > |v|)
    beyond = np.where(np.abs(v) >= delta, far, beyond)
    log_tail = np.where(v >= 0, beyond, np.log1p(-np.exp(np.minimum(beyond, -1e-300))))
    return log_tail, log_density
