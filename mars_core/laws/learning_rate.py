"""Learning-rate law: the peak rate at which a rank pair is best, and what another rate costs.

    log best(r_me, r_llm, D) = b + s_me log(r_me / c_me) + s_llm log(r_llm / c_llm) + s_D log(D / c_D)
    loss(rate) - loss(best) = a (log rate - log best)^2,  log a = l + l_me log(r_me / c_me) + l_llm log(r_llm / c_llm)

| symbol | meaning | shape |
|---|---|---|
| w | b, s_me, s_llm, s_D, z_me, z_llm of one axis; z: shift of b where a module has rank 0 and so no slope | (6,) |
| a | curvature, nats per squared factor e of the rate; l, l_me, l_llm of one axis decide it | (n,) |
| c | centre: geometric means of the ranks, and the largest size | 3 numbers |
| axis | `all`: one rate for all modules; `me`, `llm`: a rate of each | |
| phi | w of every axis, l of every axis, and for two axes q; their offsets interact as 2 tanh(q) sqrt(a a') | (p,) |

Source: the slope in the rank follows from how alpha follows from it. With alpha / r constant the product BA takes steps
that grow with the root of the rank, so the best rate falls as r^-1/2; with alpha constant it does not depend on the
rank (arXiv 2602.06204; "LoRA without regret" keeps alpha = 32 for all ranks); rsLoRA's scale lies between. The parabola
in the log rate is the first term of an expansion about the optimum: a run far from it costs more than a parabola says
on the high side and less on the low side, so that whoever fits it doubts runs by how far away they are.
`benchmarks/rank_and_rate.py` measures both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from mars_core.ranks import Pair

Floats = NDArray[np.float64]
Axis = Literal["all", "me", "llm"]
WEIGHTS = ("b", "s_me", "s_llm", "s_D", "z_me", "z_llm")
CURVATURE = ("l", "l_me", "l_llm")


@dataclass(frozen=True)
class Centre:
    """Where slopes turn: a vision rank, an LLM rank, and a dataset size in samples."""

    r_me: float
    r_llm: float
    size: float


@dataclass(frozen=True)
class LearningRateLaw:
    """The form of the law for given axes; its functions take phi."""

    axes: tuple[Axis, ...]
    centre: Centre

    @property
    def symbols(self) -> tuple[str, ...]:
        """Names of the elements of phi."""
        suffix = [""] if len(self.axes) == 1 else [f" ({axis})" for axis in self.axes]
        named = [f"{name}{own}" for names in (WEIGHTS, CURVATURE) for own in suffix for name in names]
        return (*named, *(["q"] if len(self.axes) == 2 else []))

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
        return self.features(pairs, size) @ self._weights(phi).T

    def penalty(self, phi: Floats, log_rates: Floats, pairs: Sequence[Pair], size: Floats) -> Floats:
        """What a rate costs over the best one, in units of the value, (n,).

        Args:
            phi: coefficients.
            log_rates: log peak rate of each row on each axis, (n, n_axes).
            pairs: of each row.
            size: of each row, samples.
        """
        features = self.features(pairs, size)
        offset, a = self._offset(phi, log_rates, pairs, features), self._curvature(phi, features)
        found = (a * offset**2).sum(axis=1)
        if len(self.axes) == 2:
            found = found + 2.0 * np.tanh(phi[-1]) * np.sqrt(a.prod(axis=1)) * offset.prod(axis=1)
        return np.asarray(found)

    def jacobian(self, phi: Floats, log_rates: Floats, pairs: Sequence[Pair], size: Floats) -> Floats:
        """Derivatives of the penalty by phi, (n, p)."""
        features = self.features(pairs, size)
        offset, a = self._offset(phi, log_rates, pairs, features), self._curvature(phi, features)
        by_offset, by_log = 2.0 * a * offset, a * offset**2
        crossed: list[Floats] = []
        if len(self.axes) == 2:
            root, bend = np.sqrt(a.prod(axis=1)), np.tanh(phi[-1])
            by_offset = by_offset + 2.0 * bend * root[:, None] * offset[:, ::-1]
            product = root * offset.prod(axis=1)
            by_log = by_log + bend * product[:, None]
            crossed = [2.0 * (1.0 - bend**2) * product]
        by_weights = -(by_offset * self._adapted(pairs))[:, :, None] * features[:, None, :]
        by_curvature = by_log[:, :, None] * features[:, None, : len(CURVATURE)]
        parts = [one.reshape(len(offset), -1) for one in (by_weights, by_curvature)]
        return np.column_stack([*parts, *crossed])

    def _weights(self, phi: Floats) -> Floats:
        n = len(WEIGHTS)
        return phi[: n * len(self.axes)].reshape(len(self.axes), n)

    def _curvature(self, phi: Floats, features: Floats) -> Floats:
        """a of each row on each axis, (n, n_axes)."""
        n, start = len(CURVATURE), len(WEIGHTS) * len(self.axes)
        own = phi[start : start + n * len(self.axes)].reshape(len(self.axes), n)
        return np.asarray(np.exp(features[:, :n] @ own.T))

    def _offset(self, phi: Floats, log_rates: Floats, pairs: Sequence[Pair], features: Floats) -> Floats:
        return np.asarray((log_rates - features @ self._weights(phi).T) * self._adapted(pairs))

    def _adapted(self, pairs: Sequence[Pair]) -> Floats:
        """1 where an axis moves adapters of a row, 0 where its module has none, (n, n_axes)."""
        ranks = np.array(pairs, dtype=np.float64).reshape(-1, 2) > 0
        columns = {"all": np.ones(len(ranks)), "me": ranks[:, 0], "llm": ranks[:, 1]}
        return np.column_stack([columns[axis] for axis in self.axes]).astype(np.float64)
