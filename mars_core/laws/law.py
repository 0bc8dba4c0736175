"""A scaling law as data: a sum of power terms, one declaration per law.

Notation, shared by every law file and by `mars_core.fitting`:

| symbol | meaning | shape |
|---|---|---|
| theta | natural coefficients, in `Law.symbols` order | (n_params,) or (n_draws, n_params) |
| phi | internal coefficients: log of scales and floors, exponents as they are | same as theta |
| X | columns of inputs, one array each | mapping column -> (n_points,) |
| M | design: log of term k at point i is `M[k, i] @ phi` | (n_terms, n_points, n_params) |
| f | log prediction, `logsumexp_k(M[k] @ phi)` | (n_draws, n_points) |

Most laws here are `y = sum_k exp(M_k phi)`: a floor is a term without factors. The gradient and the
curvature of `f` therefore have one closed form, whatever the law: with `p_k` the share of term k in the
prediction, `df/dphi = sum_k p_k M_k`. A law that joins its terms otherwise names a `Combination`; `p_k` is
then the term's elasticity, the derivative of `f` in the term's logarithm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mars_core.laws.combination import Combination

Floats = NDArray[np.float64]
Columns = Mapping[str, Any]


@dataclass(frozen=True)
class Feature:
    """`(sum_c weight_c * ln X_c) ** power`: what an exponent multiplies inside a term's logarithm."""

    weights: tuple[tuple[str, float], ...]
    power: int = 1

    def value(self, log_inputs: Mapping[str, Floats]) -> Floats:
        """Feature at every point, shape (n_points,)."""
        total = sum(weight * log_inputs[column] for column, weight in self.weights)
        return np.asarray(total, dtype=np.float64) ** self.power


def log_of(column: str, weight: float = 1.0) -> Feature:
    """`weight * ln X[column]`."""
    return Feature(((column, weight),))


def log_ratio(numerator: str, denominator: str, power: int = 1) -> Feature:
    """`ln(numerator / denominator) ** power`."""
    return Feature(((numerator, 1.0), (denominator, -1.0)), power)


@dataclass(frozen=True)
class Term:
    """`scale * exp(sum_j symbol_j * feature_j)`; without factors it is a constant (a floor)."""

    scale: str
    factors: tuple[tuple[str, Feature], ...] = ()


@dataclass(frozen=True)
class Law:
    """One scaling law: its equation, where it comes from, its units and everything a fitter needs.

    Args:
        name: what `get_law` and the command line call it.
        title: name in prose.
        equation: plain-text equation under the paper's symbols.
        source: paper and equation number.
        units: unit of every input, of the target and of dimensional coefficients.
        inputs: columns the law reads; all must be positive.
        target: column the law predicts; must be positive.
        symbols: coefficients, in the order of `theta`.
        terms: the sum that makes the prediction.
        size_column: the input that counts data (or steps); held-out points are its largest values.
        exponent_bounds: bounds of each coefficient that is not a scale (state them in the result).
        start_ranges: ranges from which starting exponents are spread.
        expected_signs: sign that the paper expects of an exponent, +1 or -1.
        floor: symbol of the constant term that the target approaches, None where the law has none.
        trivial_rivals: simpler laws that this one must beat on held-out points to be worth having.
        combination: how the terms make the prediction; None is their sum.
        scale_bounds: bounds of a scale at the data's centre, natural, where the rule of `bounds` is not meant.
        smallest_last: whether the held-out points are the smallest values of `size_column` (a loss), not the largest.
        n_starts: starting points of a fit where the caller does not say.
    """

    name: str
    title: str
    equation: str
    source: str
    units: Mapping[str, str]
    inputs: tuple[str, ...]
    target: str
    symbols: tuple[str, ...]
    terms: tuple[Term, ...]
    size_column: str
    exponent_bounds: Mapping[str, tuple[float, float]]
    start_ranges: Mapping[str, tuple[float, float]]
    expected_signs: Mapping[str, int] = field(default_factory=dict)
    floor: str | None = None
    trivial_rivals: tuple[str, ...] = ()
    combination: Combination | None = None
    scale_bounds: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    smallest_last: bool = False
    n_starts: int = 64

    @property
    def scales(self) -> tuple[str, ...]:
        """Symbols that multiply a term (fitted as logarithms, always positive)."""
        return tuple(term.scale for term in self.terms)

    @property
    def n_params(self) -> int:
        """Number of coefficients."""
        return len(self.symbols)

    def index(self, symbol: str) -> int:
        """Position of `symbol` in `theta`."""
        return self.symbols.index(symbol)

    def log_mask(self) -> NDArray[np.bool_]:
        """True where the internal coefficient is a logarithm, shape (n_params,)."""
        return np.array([symbol in self.scales for symbol in self.symbols])

    def internal(self, theta: Any) -> Floats:
        """Natural to internal coefficients, any leading shape."""
        natural = np.asarray(theta, dtype=np.float64)
        log_mask = self.log_mask()
        if np.any(natural[..., log_mask] < 0):
            raise ValueError(f"{self.name}: coefficients {self.scales} must not be negative, got {natural}")
        phi = natural.copy()
        with np.errstate(divide="ignore"):
            phi[..., log_mask] = np.log(natural[..., log_mask])
        return phi

    def natural(self, phi: Any) -> Floats:
        """Internal to natural coefficients, any leading shape."""
        theta = np.array(phi, dtype=np.float64)
        log_mask = self.log_mask()
        with np.errstate(over="ignore"):
            theta[..., log_mask] = np.exp(theta[..., log_mask])
        return theta

    def design(self, X: Columns) -> Floats:
        """Design tensor M, shape (n_terms, n_points, n_params): log of term k is `M[k] @ phi`."""
        log_inputs = self._log_inputs(X)
        n_points = len(next(iter(log_inputs.values())))
        M = np.zeros((len(self.terms), n_points, self.n_params))
        for k, term in enumerate(self.terms):
            M[k, :, self.index(term.scale)] = 1.0
            for symbol, feature in term.factors:
                M[k, :, self.index(symbol)] += feature.value(log_inputs)
        return M

    def predict(self, theta: Any, X: Columns) -> Floats:
        """Predicted target.

        Args:
            theta: natural coefficients, shape (n_params,) or (n_draws, n_params).
            X: input columns, arrays of shape (n_points,) or scalars.

        Returns:
            Target in the law's units, shape (n_points,) or (n_draws, n_points).
        """
        with np.errstate(over="ignore"):
            return np.asarray(np.exp(self.log_predict(self.internal(theta), X)))

    def log_predict(self, phi: Any, X: Columns) -> Floats:
        """Logarithm of the prediction from internal coefficients; shapes as `predict`."""
        logs = np.asarray(self._log_terms(np.asarray(phi, dtype=np.float64), self.design(X)))
        if self.combination is not None:
            return self.combination.joined(logs)[0]
        return np.asarray(np.logaddexp.reduce(logs, axis=0), dtype=np.float64)

    def log_gradient(self, phi: Any, X: Columns) -> Floats:
        """Gradient of the log prediction in internal coefficients, shape (n_points, n_params)."""
        M = self.design(X)
        logs = self._log_terms(np.asarray(phi, dtype=np.float64), M)
        if self.combination is not None:
            shares = self.combination.joined(logs)[1]
        else:
            shares = np.exp(logs - np.logaddexp.reduce(logs, axis=0))
        return np.asarray(np.einsum("kn,knp->np", shares, M))

    def gradient(self, theta: Any, X: Columns) -> Floats:
        """Gradient of the prediction in natural coefficients, shape (n_points, n_params)."""
        natural = np.asarray(theta, dtype=np.float64)
        if np.any(natural[self.log_mask()] <= 0):
            raise ValueError(f"{self.name}: the gradient needs positive {self.scales}, got {natural}")
        inner = np.where(self.log_mask(), 1.0 / np.where(natural == 0, 1.0, natural), 1.0)
        in_logs = self.log_gradient(self.internal(natural), X)
        return np.asarray(self.predict(natural, X)[:, None] * in_logs * inner)

    def bounds(self, y: Any) -> tuple[Floats, Floats]:
        """Bounds of the internal coefficients, for a design whose features are centred on the data.

        A scale is then the term's size at the centre of the data: between `SMALLEST_SHARE` of the smallest
        target and `LARGEST_MULTIPLE` of the largest. A floor may not pass the largest target. Exponents
        have the law's own bounds, and so has a scale in `scale_bounds`.

        Args:
            y: observed targets, shape (n_points,).

        Returns:
            lower and upper, each of shape (n_params,).
        """
        targets = np.asarray(y, dtype=np.float64)
        lower, upper = np.empty(self.n_params), np.empty(self.n_params)
        for symbol, (low, high) in self.exponent_bounds.items():
            lower[self.index(symbol)], upper[self.index(symbol)] = low, high
        for term in self.terms:
            at = self.index(term.scale)
            lower[at] = np.log(SMALLEST_SHARE * targets.min())
            upper[at] = np.log(targets.max() * (LARGEST_MULTIPLE if term.factors else 1.0))
        for symbol, (low, high) in self.scale_bounds.items():
            lower[self.index(symbol)], upper[self.index(symbol)] = np.log(low), np.log(high)
        return lower, upper

    def at_least(self, limits: Mapping[str, float]) -> Law:
        """The law with a least value of some constants, as the paper's appendix G holds P_max at 80 or more.

        Raises:
            ValueError: a symbol is no constant term with bounds of its own, or the limit lies outside its bounds.
        """
        constants = [term.scale for term in self.terms if not term.factors and term.scale in self.scale_bounds]
        bounds = dict(self.scale_bounds)
        for symbol, limit in limits.items():
            if symbol not in constants:
                raise ValueError(
                    f"law {self.name} has no constant {symbol!r} that can be held at a least value; it has: "
                    f"{', '.join(constants) or 'none'}"
                )
            low, high = bounds[symbol]
            if not low <= limit < high:
                raise ValueError(f"{symbol} must be at least {low:g} and below {high:g}, got {limit:g}")
            bounds[symbol] = (limit, high)
        return replace(self, scale_bounds=bounds)

    def _log_inputs(self, X: Columns) -> dict[str, Floats]:
        missing = [column for column in self.inputs if column not in X]
        if missing:
            raise ValueError(f"{self.name} reads columns {list(self.inputs)}; missing: {missing}")
        arrays = [np.atleast_1d(np.asarray(X[column], dtype=np.float64)) for column in self.inputs]
        for column, values in zip(self.inputs, arrays, strict=True):
            if not np.all(values > 0):
                raise ValueError(
                    f"{self.name}: {column} must be positive to stand in a power law, got {values.min()}; "
                    "leave out rank 0 and size 0 (a module without adapter has no power law)"
                )
        broadcast = np.broadcast_arrays(*arrays)
        return {column: np.log(values) for column, values in zip(self.inputs, broadcast, strict=True)}

    @staticmethod
    def _log_terms(phi: Floats, M: Floats) -> Floats:
        """Log of every term, shape (n_terms, n_points) or (n_terms, n_draws, n_points)."""
        with np.errstate(invalid="ignore"):
            logs = np.stack([_matvec(phi, rows) for rows in M])
        return np.where(np.isnan(logs), -np.inf, logs)


SMALLEST_SHARE = 1e-6
LARGEST_MULTIPLE = 10.0


def _matvec(phi: Floats, rows: Floats) -> Floats:
    """`rows @ phi` per draw, with the convention that a coefficient the term does not use counts nothing.

    A floor of exactly 0 is `-inf` in logs; multiplied by a design entry of 0 it must not become NaN.
    """
    used = np.any(rows != 0, axis=0)
    return np.asarray(phi[..., used] @ rows[:, used].T)


def columns_of(law: Law, points: Columns) -> dict[str, Floats]:
    """The law's input columns of a table as float arrays."""
    return {column: np.asarray(points[column], dtype=np.float64) for column in law.inputs}


def describe(laws: Sequence[Law]) -> list[dict[str, object]]:
    """One JSON-ready row per law: name, title, equation, source, inputs, target, symbols, units."""
    return [
        {
            "name": law.name,
            "title": law.title,
            "equation": law.equation,
            "source": law.source,
            "inputs": list(law.inputs),
            "target": law.target,
            "symbols": list(law.symbols),
            "units": dict(law.units),
        }
        for law in laws
    ]
