"""Learning-rate law: the peak rate at which a rank pair is best, and what another rate costs.

    log best(r_me, r_llm, D) = b + s_me log(r_me / c_me) + s_llm log(r_llm / c_llm) + s_D log(D / c_D) + u(r_me, r_llm)
    loss(rate) - loss(best) = a y^2,  y = z exp(k tanh(z / 2)),  z = log rate - log best
    log a = l + l_me log(r_me / c_me) + l_llm log(r_llm / c_llm)

| symbol | meaning | shape |
|---|---|---|
| w | b, s_me, s_llm, s_D, z_me, z_llm of one axis; z: shift of b where a module has rank 0 and so no slope | (6,) |
| a | curvature, nats per squared factor e of the rate; l, l_me, l_llm of one axis decide it | (n,) |
| k | how lopsided the valley is: near its bottom a rate costs 1 + k z times the parabola | (1,) |
| u | offset of a pair that its ranks do not explain, of one axis; 0 where the law does not know the pair | (n_pairs,) |
| c | centre: geometric means of the ranks, and the largest size | 3 numbers |
| axis | `all`: one rate for all modules; `me`, `llm`: a rate of each | |
| phi | w, l, k of every axis, for two axes q, u of every axis; two axes interact as 2 tanh(q) sqrt(a a') y y' | (p,) |

Source: the slope in the rank follows from how alpha follows from it. With alpha / r constant the product BA takes steps
that grow with the root of the rank, so the best rate falls as r^-1/2; with alpha constant it does not depend on the
rank (arXiv 2602.06204; "LoRA without regret" keeps alpha = 32 for all ranks); rsLoRA's scale lies between. The parabola
in the log rate is the first term of an expansion about the optimum, k the second, bounded so that the valley keeps one
bottom for |k| < 2; what is beyond both, whoever fits the law doubts by a share of what a run pays.
`benchmarks/rank_and_rate.py` measures slopes and curvature.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mars_core.ranks import Pair

Floats = NDArray[np.float64]
Axis = Literal["all", "me", "llm"]
WEIGHTS = ("b", "s_me", "s_llm", "s_D", "z_me", "z_llm")
CURVATURE = ("l", "l_me", "l_llm")
LOPSIDED = "k"


@dataclass(frozen=True)
class Centre:
    """Where slopes turn: a vision rank, an LLM rank, and a dataset size in samples."""

    r_me: float
    r_llm: float
    size: float


@dataclass(frozen=True)
class LearningRateLaw:
    """The form of the law for given axes; its functions take phi.

    pairs: those with an offset of their own.
    """

    axes: tuple[Axis, ...]
    centre: Centre
    pairs: tuple[Pair, ...] = ()

    @property
    def symbols(self) -> tuple[str, ...]:
        """Names of the elements of phi."""
        suffix = [""] if len(self.axes) == 1 else [f" ({axis})" for axis in self.axes]
        offsets = tuple(f"u{pair}" for pair in self.pairs)
        blocks = [
            [f"{name}{own}" for own in suffix for name in names] for names in (WEIGHTS, CURVATURE, (LOPSIDED,), offsets)
        ]
        crossed = ["q"] if len(self.axes) == 2 else []
        return tuple(chain(*blocks[:3], crossed, blocks[3]))

    @property
    def offsets(self) -> slice:
        """Where u of every axis stands in phi."""
        end = len(self.symbols)
        return slice(end - len(self.axes) * len(self.pairs), end)

    def features(self, pairs: Sequence[Pair], size: Floats) -> Floats:
        """What w multiplies, (n, 6).

        Args:
            pairs: of each row.
            size: dataset size of each row in samples.
        """
        ranks = np.array(pairs, dtype=np.float64).reshape(-1, 2)
        zero = ranks == 0
        logs = np.log(np.where(zero, 1.0, ranks)) - np.where(zero, 0.0, np.log([self.centre.r_me, self.centre.r_llm]))
        logs = np.where(zero, 0.0, logs)
        return np.column_stack([np.ones(len(ranks)), logs, np.log(size / self.centre.size), zero])

    def best(self, phi: Floats, pairs: Sequence[Pair], size: Floats) -> Floats:
        """Log of the best rate of each row on each axis, (n, n_axes)."""
        return np.stack([gradient @ phi for gradient in self.best_gradients(pairs, size)], axis=1)

    def best_gradients(self, pairs: Sequence[Pair], size: Floats) -> Floats:
        """Derivatives of log best by phi, in which it is linear, (n_axes, n, p)."""
        features, own, n = self.features(pairs, size), self._own(pairs), len(WEIGHTS)
        found = np.zeros((len(self.axes), len(features), len(self.symbols)))
        start = self.offsets.start
        for i in range(len(self.axes)):
            found[i, :, n * i : n * (i + 1)] = features
            found[i, :, start + len(self.pairs) * i : start + len(self.pairs) * (i + 1)] = own
        return found

    def curvature(self, phi: Floats, pairs: Sequence[Pair], size: Floats) -> Floats:
        """a of each row on each axis, 0 where a row's module has no adapter, (n, n_axes)."""
        return self._curvature(phi, self.features(pairs, size)) * self._adapted(pairs)

    def penalty(self, phi: Floats, log_rates: Floats, pairs: Sequence[Pair], size: Floats) -> Floats:
        """What a rate costs over the best one, in units of the value, (n,).

        Args:
            phi: coefficients.
            log_rates: log peak rate of each row on each axis, (n, n_axes).
            pairs: of each row.
            size: of each row, samples.
        """
        a = self._curvature(phi, self.features(pairs, size))
        y, *_ = self._lopsided(phi, self._offset(phi, log_rates, pairs, size))
        found = (a * y**2).sum(axis=1)
        if len(self.axes) == 2:
            found = found + 2.0 * np.tanh(self._crossed(phi)) * np.sqrt(a.prod(axis=1)) * y.prod(axis=1)
        return np.asarray(found)

    def jacobian(self, phi: Floats, log_rates: Floats, pairs: Sequence[Pair], size: Floats) -> Floats:
        """Derivatives of the penalty by phi, (n, p)."""
        features = self.features(pairs, size)
        a = self._curvature(phi, features)
        y, y_by_z, y_by_k = self._lopsided(phi, self._offset(phi, log_rates, pairs, size))
        by_y, by_log = 2.0 * a * y, a * y**2
        crossed: list[Floats] = []
        if len(self.axes) == 2:
            root, bend = np.sqrt(a.prod(axis=1)), np.tanh(self._crossed(phi))
            by_y = by_y + 2.0 * bend * root[:, None] * y[:, ::-1]
            product = root * y.prod(axis=1)
            by_log = by_log + bend * product[:, None]
            crossed = [2.0 * (1.0 - bend**2) * product]
        by_best = -by_y * y_by_z * self._adapted(pairs)
        parts = [
            (by_best[:, :, None] * features[:, None, :]).reshape(len(y), -1),
            (by_log[:, :, None] * features[:, None, : len(CURVATURE)]).reshape(len(y), -1),
            by_y * y_by_k,
            *crossed,
            (by_best[:, :, None] * self._own(pairs)[:, None, :]).reshape(len(y), -1),
        ]
        return np.column_stack(parts)

    def _curvature(self, phi: Floats, features: Floats) -> Floats:
        n, start = len(CURVATURE), len(WEIGHTS) * len(self.axes)
        own = phi[start : start + n * len(self.axes)].reshape(len(self.axes), n)
        return np.asarray(np.exp(features[:, :n] @ own.T))

    def _lopsided(self, phi: Floats, z: Floats) -> tuple[Floats, Floats, Floats]:
        """y of the offsets z, and its derivatives by z and by k, (n, n_axes) each."""
        start = (len(WEIGHTS) + len(CURVATURE)) * len(self.axes)
        k, tanh = phi[start : start + len(self.axes)], np.tanh(0.5 * z)
        stretch = np.exp(k * tanh)
        y = z * stretch
        return y, stretch * (1.0 + 0.5 * k * z * (1.0 - tanh**2)), y * tanh

    def _crossed(self, phi: Floats) -> float:
        return float(phi[self.offsets.start - 1])

    def _offset(self, phi: Floats, log_rates: Floats, pairs: Sequence[Pair], size: Floats) -> Floats:
        return np.asarray((log_rates - self.best(phi, pairs, size)) * self._adapted(pairs))

    def _own(self, pairs: Sequence[Pair]) -> Floats:
        """1 at the column of each row's pair, (n, n_pairs)."""
        place = {pair: at for at, pair in enumerate(self.pairs)}
        at = np.array([place.get(pair, -1) for pair in pairs], dtype=np.int64)
        return np.asarray(at[:, None] == np.arange(len(self.pairs)), dtype=np.float64)

    def _adapted(self, pairs: Sequence[Pair]) -> Floats:
        """1 where an axis moves adapters of a row, 0 where its module has none, (n, n_axes)."""
        ranks = np.array(pairs, dtype=np.float64).reshape(-1, 2) > 0
        columns = {"all": np.ones(len(ranks)), "me": ranks[:, 0], "llm": ranks[:, 1]}
        return np.column_stack([columns[axis] for axis in self.axes]).astype(np.float64)
