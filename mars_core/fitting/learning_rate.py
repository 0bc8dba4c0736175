"""Fit the learning-rate law to the ends of runs that differ in their rate alone.

    value = own(pair, seed, size) + penalty(phi; rate, pair, size) + scatter

Seeds of which a pair has one rate alone are compared with each other: own(pair, size) + common(seed, size). What a pair
reaches at its best rate is free, so nothing is assumed of how ranks act. Runs far from the best rate are
doubted: the law's valley is wrong there by a share of what it says. A maximum a posteriori estimate with its Laplace
covariance; the priors are weak (`PRIOR`), and what the runs do not tell, such as the slope in the size where all runs
have one, stays as wide as they are. How far the best rates of pairs lie off the line in the log ranks is estimated
with the rest (empirical Bayes), so that the interval of a pair's best rate holds what its ranks do not explain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import least_squares

from mars_core.laws.learning_rate import WEIGHTS, Axis, Centre, Floats, LearningRateLaw
from mars_core.ranks import Pair

# Mean and standard deviation of each weight; b is relative to the middle of the measured rates.
PRIOR = {
    "b": (0.0, 2.0), "s_me": (-0.2, 0.3), "s_llm": (-0.2, 0.3), "s_D": (-0.1, 0.15),
    "z_me": (0.0, 0.7), "z_llm": (0.0, 0.7),
}  # fmt: skip
CURVATURE = (0.1, 1.2)  # median as a share of the value's level, standard deviation of its log
BEND = 0.3  # standard deviation of how log a goes with a log rank
CROSSED = 0.5  # standard deviation of q
LOPSIDED = 0.2  # standard deviation of k
DOUBT = 0.15  # of a run's penalty: how far the valley is off near its bottom
CLIFF, CLIFF_DOUBT = 0.25, 0.7  # of the level: a run that lost so much has left the valley; of its log, how far off
OFFSET, OFFSET_FREEDOM = 0.1, 4.0  # of a pair's best rate, a standard deviation of its log, known as if by so many
USUAL_SHARE, PRIOR_FREEDOM = 0.003, 4.0  # of the level: scatter of a run, known as if by so many runs
ROUNDS = 6  # of weighting by doubt
SAME = 1e-6  # log rates closer than this are one rate
Z = 1.96  # of a 95% interval
SAME_SIZE = 0.1  # of a log: sizes that are compared as one
SEEDS_APART = 2.0  # variance of runs of different seeds over that of one seed's: their luck is as large as the scatter
EPSILON = 1e-9  # of the largest: singular values that are none


@dataclass(frozen=True, eq=False)
class RateFit:
    """The fitted law.

    phi: (p,). covariance: (p, p). prior_mean, prior_sd: (p,). scatter: standard deviation of a run's value. rates: log
    rates that were tried on each axis, sorted. level: of the ends of runs. n_groups: groups of runs (pair, seed, size)
    with several rates. held: log rate of a module whose rate does not vary beside one that does. ratio: log rate of the
    vision encoder less that of the LLM, where both go together.
    """

    law: LearningRateLaw
    phi: Floats
    covariance: Floats
    prior_mean: Floats
    prior_sd: Floats
    scatter: float
    rates: tuple[Floats, ...]
    level: float
    n_groups: int
    held: Mapping[str, float] = field(default_factory=dict)
    ratio: float = 0.0

    def log_rates(self, runs: pd.DataFrame) -> Floats:
        """Log rates of runs on the axes, (n, n_axes); columns r_llm, log_me, log_llm."""
        return _log_rates(runs, self.law.axes, self.ratio)

    def best(self, pair: Pair, size: float) -> Floats:
        """Log best rate of a pair on each axis, (n_axes,)."""
        return np.asarray(self.law.best(self.phi, [pair], np.array([size]))[0])

    def best_sd(self, pairs: Sequence[Pair], size: Floats) -> Floats:
        """Standard deviation of log best of each row on each axis, (n, n_axes); it is linear in phi, so it is exact.

        A pair that was not measured has an offset of its own that nothing is known of.
        """
        gradients = self.law.best_gradients(pairs, size)
        variance = np.einsum("anp,pq,anq->na", gradients, self.covariance, gradients)
        unknown = np.array([pair not in self.law.pairs for pair in pairs], dtype=np.float64)
        return np.asarray(np.sqrt(variance + unknown[:, None] * self.offset_sd**2))

    def best_interval(self, pair: Pair, size: float) -> Floats:
        """95% interval of `best`, (n_axes, 2)."""
        half = Z * self.best_sd([pair], np.array([size]))[0]
        return np.column_stack([self.best(pair, size) - half, self.best(pair, size) + half])

    @property
    def offset_sd(self) -> float:
        """Standard deviation of pairs' own offsets of log best."""
        return float(self.prior_sd[self.law.offsets][0])

    def interval(self, symbol: str) -> tuple[float, float]:
        """95% interval of an element of phi."""
        at = self.law.symbols.index(symbol)
        half = Z * float(np.sqrt(self.covariance[at, at]))
        return float(self.phi[at]) - half, float(self.phi[at]) + half


def axes_of(log_me: Floats, log_llm: Floats, pairs: list[Pair]) -> tuple[Axis, ...]:
    """Which rates vary over the runs that have the module's adapters: none, both together, or those of modules."""
    adapted = np.array(pairs, dtype=np.float64).reshape(-1, 2) > 0
    modules: tuple[tuple[Axis, Floats], ...] = (("me", log_me[adapted[:, 0]]), ("llm", log_llm[adapted[:, 1]]))
    varying = tuple(axis for axis, own in modules if _varies(own))
    apart = _varies((log_me - log_llm)[adapted.all(axis=1)])
    return ("all",) if len(varying) == 2 and not apart else varying


def _varies(log_rates: Floats) -> bool:
    return bool(len(log_rates) and np.ptp(log_rates) > SAME)


def fit_learning_rates(ends: pd.DataFrame, level: float) -> RateFit | None:
    """Fit the law; None where all runs have one rate, or no pair has two rates at a size.

    Args:
        ends: one row per run: r_me, r_llm, seed, D (samples), log_me, log_llm (log peak rates), value.
        level: of their values, what scatter and curvature are a share of.
    """
    pairs = [(int(a), int(b)) for a, b in zip(ends["r_me"], ends["r_llm"], strict=True)]
    log_me, log_llm = (ends[name].to_numpy(dtype=np.float64) for name in ("log_me", "log_llm"))
    axes = axes_of(log_me, log_llm, pairs)
    if not axes:
        return None
    law = LearningRateLaw(axes, _centre(pairs, ends["D"]), tuple(sorted(set(pairs))))
    held, ratio = _constant(axes, log_me, log_llm, pairs)
    rates = _log_rates(ends, axes, ratio)
    group, across = _groups(ends, rates)
    several = group >= 0
    if not several.any():
        return None
    tried = [_tried(axis, own, pairs) for axis, own in zip(axes, rates.T, strict=True)]
    mean, sd = _prior(law, tried, level)
    effects = _effects(ends[several], group[several], across[several])
    noisier = np.where(across[several], SEEDS_APART, 1.0)
    seen = above_best(ends["value"][several], group[several])
    problem = _Problem(law, ends[several], rates[several], effects, noisier, seen, mean, sd, level)
    starts = [problem.solve(_start(mean, shift, law)) for shift in _shifts(tried)]
    phi = min(starts, key=problem.cost)
    covariance, scatter = problem.laplace(phi)
    n_groups = int(group.max()) + 1
    return RateFit(law, phi, covariance, mean, problem.sd, scatter, tuple(tried), level, n_groups, held, ratio)


def doubt_of(paid: Floats, seen: Floats, level: float) -> Floats:
    """How far the law may be off for each run, a standard deviation in units of the value.

    Near the bottom it is a share of what a run pays. A run at too high a rate does not climb the valley's wall, it
    falls off a cliff: its loss is then many times what a valley says, or not far from untrained. Of such runs only the
    order of magnitude counts: the law's cost and the seen one are compared by their logarithms.

    Args:
        paid: what the law says that each run pays, (n,).
        seen: how far each run ended above the best one of its pair, (n,).
        level: of values.
    """
    least = 1e-6 * level
    paid, seen = np.maximum(paid, least), np.maximum(seen, least)
    steep = 1.0 / (1.0 + (CLIFF * level / np.maximum(paid, seen)) ** 2)
    share = DOUBT + (CLIFF_DOUBT - DOUBT) * steep
    return np.asarray(np.maximum(DOUBT * paid, share * _logarithmic_mean(paid, seen)))


def _logarithmic_mean(a: Floats, b: Floats) -> Floats:
    """(a - b) / log(a / b): what turns an error of a logarithm into one of the number."""
    gap = np.log(a / b)
    near = np.abs(gap) < 1e-4
    return np.asarray(np.where(near, np.sqrt(a * b), (a - b) / np.where(near, 1.0, gap)))


def above_best(values: pd.Series[float], group: Floats | list[pd.Series[Any]] | NDArray[np.int64]) -> Floats:
    """How far each value lies above the smallest of its group, (n,)."""
    return np.asarray(values - values.groupby(group).transform("min"), dtype=np.float64)


def _constant(
    axes: tuple[Axis, ...], log_me: Floats, log_llm: Floats, pairs: list[Pair]
) -> tuple[dict[str, float], float]:
    """Rates that are held beside a varying one, and the ratio of two that vary together."""
    adapted = np.array(pairs, dtype=np.float64).reshape(-1, 2) > 0
    if axes == ("all",):
        both = adapted.all(axis=1)
        return {}, float(np.mean((log_me - log_llm)[both])) if both.any() else 0.0
    modules = {"me": log_me[adapted[:, 0]], "llm": log_llm[adapted[:, 1]]}
    return {name: float(own[0]) for name, own in modules.items() if name not in axes and len(own)}, 0.0


def _log_rates(runs: pd.DataFrame, axes: tuple[Axis, ...], ratio: float) -> Floats:
    alone = runs["log_me"] - ratio  # of a run without LLM adapters, on the LLM's scale
    column = {"all": np.where(runs["r_llm"] > 0, runs["log_llm"], alone), "me": runs["log_me"], "llm": runs["log_llm"]}
    return np.column_stack([np.asarray(column[axis], dtype=np.float64) for axis in axes])


def _tried(axis: Axis, log_rates: Floats, pairs: list[Pair]) -> Floats:
    """Log rates that adapters of an axis were trained at, sorted, each once."""
    ranks = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    adapted = {"all": ranks.max(axis=1), "me": ranks[:, 0], "llm": ranks[:, 1]}[axis] > 0
    return np.unique(np.round(log_rates[adapted], 9))


def _groups(ends: pd.DataFrame, rates: Floats) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Number of each run's group of one pair and size that has several rates, -1 for a run in none, and whether the
    group is one across seeds.

    A group is one of a seed; runs of seeds that have no several rates are grouped across these. Sizes within a tenth
    count as one.
    """
    size = _sizes(ends)
    labels = pd.Series([tuple(row) for row in np.round(rates, 9)], index=ends.index)
    found, left, numbers = np.full(len(ends), -1, dtype=np.int64), np.ones(len(ends), dtype=np.bool_), 0
    across = np.zeros(len(ends), dtype=np.bool_)
    for keys in (["r_me", "r_llm", "seed"], ["r_me", "r_llm"]):
        if not left.any():
            break
        grouped = ends.assign(size=size)[left].groupby([*keys, "size"]).ngroup()
        several = np.flatnonzero(left)[(labels[left].groupby(grouped).transform("nunique") > 1).to_numpy()]
        if not len(several):
            continue
        found[several] = numbers + np.unique(grouped[ends.index[several]], return_inverse=True)[1].reshape(-1)
        across[several] = keys[-1] != "seed"
        numbers, left = int(found.max()) + 1, found < 0
    return found, across


def _sizes(ends: pd.DataFrame) -> NDArray[np.int64]:
    return np.asarray(np.round(np.log(ends["D"].to_numpy(dtype=np.float64)) / SAME_SIZE), dtype=np.int64)


def _effects(ends: pd.DataFrame, group: NDArray[np.int64], across: NDArray[np.bool_]) -> Floats:
    """Columns of what is free beside the law: a level of each group and, where groups reach across seeds, of each seed
    (and size) that several of their pairs share; linearly independent, (n_runs, n_effects)."""
    columns = [np.eye(int(group.max()) + 1)[group]]
    seed = ends.assign(size=_sizes(ends)).groupby(["seed", "size"]).ngroup().to_numpy()
    for one in np.unique(seed[across]):
        own = across & (seed == one)
        if len(np.unique(group[own])) > 1:
            columns.append(own[:, None].astype(np.float64))
    U, values, _ = np.linalg.svd(np.column_stack(columns), full_matrices=False)
    return np.asarray(U[:, values > EPSILON * values[0]])


def _centre(pairs: list[Pair], sizes: pd.Series) -> Centre:
    ranks = np.array(sorted(set(pairs)), dtype=np.float64)
    middle = [float(np.exp(np.log(own[own > 0]).mean())) if (own > 0).any() else 1.0 for own in ranks.T]
    return Centre(middle[0], middle[1], float(sizes.max()))


def _prior(law: LearningRateLaw, tried: list[Floats], level: float) -> tuple[Floats, Floats]:
    middles = [0.5 * (own.min() + own.max()) for own in tried]
    weights = [
        (PRIOR[name][0] + (middle if name == "b" else 0.0), PRIOR[name][1]) for middle in middles for name in WEIGHTS
    ]
    curvature = [(float(np.log(CURVATURE[0] * level)), CURVATURE[1]), (0.0, BEND), (0.0, BEND)] * len(law.axes)
    lopsided = [(0.0, LOPSIDED)] * len(law.axes)
    crossed = [(0.0, CROSSED)] if len(law.axes) == 2 else []
    offsets = [(0.0, OFFSET)] * (len(law.axes) * len(law.pairs))
    mean, sd = np.array([*weights, *curvature, *lopsided, *crossed, *offsets]).T
    return mean, sd


def _shifts(tried: list[Floats]) -> list[float]:
    half = 0.5 * max(float(np.ptp(own)) for own in tried)
    return [-half, 0.0, half]


def _start(mean: Floats, shift: float, law: LearningRateLaw) -> Floats:
    start = mean.copy()
    start[: len(WEIGHTS) * len(law.axes) : len(WEIGHTS)] += shift
    return start


class _Problem:
    """Residuals of the law, free effects taken off, and of its priors."""

    def __init__(
        self,
        law: LearningRateLaw,
        ends: pd.DataFrame,
        rates: Floats,
        effects: Floats,
        noisier: Floats,
        seen: Floats,
        mean: Floats,
        sd: Floats,
        level: float,
    ) -> None:
        self.law, self.rates, self.mean, self.sd = law, rates, mean, sd.copy()
        self.pairs = [(int(a), int(b)) for a, b in zip(ends["r_me"], ends["r_llm"], strict=True)]
        self.size = ends["D"].to_numpy(dtype=np.float64)
        self.value = ends["value"].to_numpy(dtype=np.float64)
        self.effects, self.noisier, self.seen, self.level = effects, noisier, seen, level
        self.usual = USUAL_SHARE * level
        told = [pair in set(self.pairs) for pair in law.pairs] * len(law.axes)  # by several rates
        self.told = np.arange(len(mean))[law.offsets][told]
        self.scatter = self.usual
        self.weight, self.free = np.full(len(ends), 1.0 / self.scatter), effects

    def solve(self, phi: Floats) -> Floats:
        """Minimise, weighting runs by doubt of what they cost as it becomes known."""
        self.scatter, self.sd[self.law.offsets] = 3.0 * self.usual, OFFSET
        for _ in range(ROUNDS):
            self._weigh(phi)
            phi = least_squares(self._residuals, phi, jac=self._jacobian, x_scale=self.sd, max_nfev=60).x
            self.scatter = self._scatter(phi)
            self.sd[self.law.offsets] = self._spread_of_offsets(phi)
        return np.asarray(phi)

    def cost(self, phi: Floats) -> float:
        """Minus log posterior up to a constant, the doubt's own normalisation included."""
        self._settle(phi)
        freedom, spread = OFFSET_FREEDOM, self.sd[self.law.offsets][0]
        offsets = (len(self.told) + freedom) * np.log(spread) + 0.5 * freedom * (OFFSET / spread) ** 2
        return float(0.5 * np.sum(self._residuals(phi) ** 2) - np.sum(np.log(self.weight)) + offsets)

    def laplace(self, phi: Floats) -> tuple[Floats, float]:
        """Covariance at the minimum, and the scatter."""
        self._settle(phi)
        J = self._jacobian(phi)
        return np.asarray(np.linalg.inv(J.T @ J)), self.scatter

    def _settle(self, phi: Floats) -> None:
        """Scatter, weights and spread of offsets that go with phi."""
        for _ in range(3):
            self._weigh(phi)
            self.scatter = self._scatter(phi)
            self.sd[self.law.offsets] = self._spread_of_offsets(phi)
        self._weigh(phi)

    def _weigh(self, phi: Floats) -> None:
        cost = self.law.penalty(phi, self.rates, self.pairs, self.size)
        doubt = doubt_of(cost, self.seen, self.level)
        self.weight = 1.0 / np.sqrt(self.noisier * self.scatter**2 + doubt**2)
        self.free = np.linalg.qr(self.weight[:, None] * self.effects)[0]

    def _scatter(self, phi: Floats) -> float:
        """Standard deviation of runs, from those near their best rate; what phi and the effects fit away counts."""
        n = len(self.value)
        share = (self.weight * self.scatter) ** 2  # how much of a run's variance is scatter
        white, J = self._residuals(phi)[:n], self._jacobian(phi)
        fitted = np.sum(self.free**2, axis=1) + np.einsum("ij,ij->i", J[:n] @ np.linalg.inv(J.T @ J), J[:n])
        freedom = float(np.sum(share * np.maximum(1.0 - fitted, 0.0)))
        squares = float(np.sum(share * white**2)) * self.scatter**2
        return float(np.sqrt((squares + PRIOR_FREEDOM * self.usual**2) / (freedom + PRIOR_FREEDOM)))

    def _spread_of_offsets(self, phi: Floats) -> float:
        """Standard deviation of pairs' offsets: one step of expectation and maximisation, of pairs that tell."""
        J = self._jacobian(phi)
        variance = np.diag(np.linalg.inv(J.T @ J))[self.told]
        squares = float(np.sum(phi[self.told] ** 2 + variance))
        return float(np.sqrt((squares + OFFSET_FREEDOM * OFFSET**2) / (len(self.told) + OFFSET_FREEDOM)))

    def _without_effects(self, columns: Floats) -> Floats:
        """Whitened columns with the free effects taken off."""
        white = self.weight[:, None] * columns
        return np.asarray(white - self.free @ (self.free.T @ white))

    def _residuals(self, phi: Floats) -> Floats:
        left = self.value - self.law.penalty(phi, self.rates, self.pairs, self.size)
        return np.concatenate([self._without_effects(left[:, None])[:, 0], (phi - self.mean) / self.sd])

    def _jacobian(self, phi: Floats) -> Floats:
        own = -self._without_effects(self.law.jacobian(phi, self.rates, self.pairs, self.size))
        return np.vstack([own, np.diag(1.0 / self.sd)])
