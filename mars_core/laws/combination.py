"""How the terms of a law make its prediction where it is not their sum.

| symbol | meaning | shape |
|---|---|---|
| logs | logarithm of every term | (n_terms, ..., n_points) |
| f | log prediction | (..., n_points) |
| e | elasticities, `d f / d logs` | as logs |
| log_shapes | logs with every scale at 1, one row per start | (n_terms, n_starts, n_points) |

With elasticities in place of shares, gradient and curvature of a fit keep the form that they have for a sum.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

Floats = NDArray[np.float64]

LARGEST_LOG = 500.0
SMALLEST_PREDICTION = 1e-9  # a difference of terms below this stands for it: its logarithm repels the fit
SMALLEST_START_SHARE = 0.02  # of the target, for a term that the linear start leaves out


class Combination(Protocol):
    """Joins the terms of a law."""

    def joined(self, logs: Floats) -> tuple[Floats, Floats]:
        """Log prediction and elasticities of the terms."""
        ...

    def start_scales(self, log_shapes: Floats, y: Floats) -> Floats:
        """Log scales to start from, for given exponents, shape (n_starts, n_terms); y is (n_points,)."""
        ...


@dataclass(frozen=True)
class SignedSum:
    """`constant + sum_k sign_k * term_k`.

    Args:
        signs: +1 or -1 for every term.
        constant: added to the prediction, in the target's unit.
    """

    signs: tuple[int, ...]
    constant: float = 0.0

    def joined(self, logs: Floats) -> tuple[Floats, Floats]:
        """Log prediction and elasticities; a prediction that is not positive stands at a tiny one."""
        signed = np.exp(np.minimum(logs, LARGEST_LOG)) * _along_terms(self.signs, logs)
        total = np.maximum(signed.sum(axis=0) + self.constant, SMALLEST_PREDICTION)
        return np.log(total), np.asarray(signed / total)

    def start_scales(self, log_shapes: Floats, y: Floats) -> Floats:
        """Non-negative least squares in relative error."""
        return signed_start_scales(log_shapes, np.array(self.signs, dtype=np.float64), y, self.constant)


@dataclass(frozen=True)
class Saturation:
    """`(top + bottom * K) / (1 + K)` of the terms top, bottom and K: from top at K = 0 down to bottom."""

    def joined(self, logs: Floats) -> tuple[Floats, Floats]:
        """Log prediction and elasticities."""
        top, bottom, K = logs
        of_bottom = bottom + K
        above = np.logaddexp(top, of_bottom)
        share = np.exp(of_bottom - above)
        fallen = np.exp(K - np.logaddexp(0.0, K))
        return above - np.logaddexp(0.0, K), np.stack([1.0 - share, share, share - fallen])

    def start_scales(self, log_shapes: Floats, y: Floats) -> Floats:
        """The half-way point is spread over the data; top and bottom are linear then."""
        n_starts = log_shapes.shape[1]
        middle = np.quantile(log_shapes[2], np.linspace(0.02, 0.98, n_starts), axis=1).diagonal()
        fallen = np.exp(log_shapes[2] - middle[:, None])
        weights = np.log(np.stack([1.0 / (1.0 + fallen), fallen / (1.0 + fallen)]))
        ends = signed_start_scales(weights, np.ones(2), y, 0.0)
        return np.column_stack([ends, -middle])


@dataclass(frozen=True)
class PoweredBase:
    """`(sum of the first n_base terms) ** power - the other terms`; the last term is the power itself."""

    n_base: int

    def joined(self, logs: Floats) -> tuple[Floats, Floats]:
        """Log prediction and elasticities; a prediction that is not positive stands at a tiny one."""
        log_base = np.logaddexp.reduce(logs[: self.n_base], axis=0)
        power = np.exp(np.minimum(logs[-1], LARGEST_LOG))
        raised = np.exp(np.minimum(power * log_base, LARGEST_LOG))
        others = np.exp(np.minimum(logs[self.n_base : -1], LARGEST_LOG))
        total = np.maximum(raised - others.sum(axis=0), SMALLEST_PREDICTION)
        of_raised = raised / total * power
        of_base = of_raised * np.exp(logs[: self.n_base] - log_base)
        return np.log(total), np.concatenate([of_base, -others / total, (of_raised * log_base)[None]])

    def start_scales(self, log_shapes: Floats, y: Floats) -> Floats:
        """Powers between 0.7 and 1.4, base terms of equal size; what is left is linear."""
        n_terms, n_starts, _ = log_shapes.shape
        log_power = np.linspace(np.log(0.7), np.log(1.4), n_starts)
        centre = log_shapes[: self.n_base].mean(axis=2)  # (n_base, n_starts)
        even = np.logaddexp.reduce(log_shapes[: self.n_base] - centre[:, :, None], axis=0)
        raised = np.exp(log_power)[:, None] * even
        columns = np.concatenate([raised[None], log_shapes[self.n_base : -1]])
        signs = np.array([1.0] + [-1.0] * (n_terms - self.n_base - 1))
        scales = signed_start_scales(columns, signs, y, 0.0)
        of_base = scales[:, :1] / np.exp(log_power)[:, None] - centre.T
        return np.column_stack([of_base, scales[:, 1:], log_power])


def signed_start_scales(log_shapes: Floats, signs: Floats, y: Floats, constant: float) -> Floats:
    """Log scales, none of them negative, that fit `y - constant` best in relative error for each start.

    A term that is left out gets a small share of the target, taken from no other term. Shapes as in the module's
    table; returns (n_starts, n_terms).
    """
    n_terms, n_starts, _ = log_shapes.shape
    peak = log_shapes.max(axis=2)
    columns = np.exp(log_shapes - peak[:, :, None]) / y  # relative: sum_k sign_k c_k column_k = 1 - constant / y
    scales = np.empty((n_starts, n_terms))
    for start in range(n_starts):
        scales[start] = nnls((columns[:, start] * signs[:, None]).T, 1.0 - constant / y)[0]
    smallest = SMALLEST_START_SHARE / np.maximum(columns.mean(axis=2).T, 1e-300)
    return np.asarray(np.log(np.maximum(scales, smallest)) - peak.T)


def _along_terms(signs: tuple[int, ...], logs: Floats) -> Floats:
    return np.array(signs, dtype=np.float64).reshape(-1, *[1] * (logs.ndim - 1))
