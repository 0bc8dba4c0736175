"""Planted studies whose runs differ in their learning rate: what a rate costs a pair, and calibrations of them.

    loss(pair, rate, D) = surface(pair, D) + a(pair) g(log rate - log best(pair, D))
    g(z) = 2 (e^(k z) - 1 - k z) / k^2

g is a parabola at its bottom and lopsided beyond, so that no law of the library has it exactly; a goes with the ranks;
log best is linear in the log ranks and in log D, with an offset of every pair that no law knows. At a rate some times
the best one a run falls off a cliff: it ends at several times the loss, as runs of the demo do (0.75 at 0.023, 3.13 at
0.047); where the edge is differs a little from run to run.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from planted.ground import LARGEST, Floats, Pair
from planted.study import Study, make_study

Run = tuple[Pair, int, float]
REFERENCE = (16, 16)
CLIFF = (1.0, 3.0)  # log rate beyond the best one at which runs fall off
WIDTH, EDGE = 0.5, 0.15  # of the fall, and how far its place differs between runs, in log rates
OFFSET = 0.08  # standard deviation of a pair's own offset of the log of its best rate


@dataclass(frozen=True, eq=False)
class Rates:
    """What the learning rate does.

    best: log best rate of each pair at 2,048 samples. slope: in log D. curvature: a of each pair, nats. skew: k.
    edge: log rate beyond the best at which runs fall off the cliff. fall: how deep, nats.
    """

    best: Mapping[Pair, float]
    slope: float
    curvature: Mapping[Pair, float]
    skew: float
    edge: float
    fall: float

    def cost(self, pair: Pair, log_rate: float, D: float = LARGEST, luck: float = 0.0) -> float:
        """What a rate costs over the best one, nats. luck: how much farther out a run's edge lies."""
        z = log_rate - self.best[pair] - self.slope * np.log(D / LARGEST)
        k = self.skew
        valley = self.curvature[pair] * 2.0 * (np.exp(k * z) - 1.0 - k * z) / k**2
        fallen = np.clip((z - self.edge - luck) / WIDTH + 0.5, 0.0, 1.0)
        return float(valley + self.fall * fallen**2 * (3.0 - 2.0 * fallen))


def draw_rates(rng: np.random.Generator, pairs: Sequence[Pair], level: float) -> Rates:
    """The best rate falls with either rank as r^-0.1 to r^-0.4; a is 5% to 20% of the level of the loss."""
    logs = np.log(np.array(pairs) / np.array(REFERENCE))
    slopes, bends = -rng.uniform(0.1, 0.4, 2), rng.uniform(-0.2, 0.2, 2)
    base = rng.uniform(np.log(1e-4), np.log(3e-3))
    best = base + logs @ slopes + OFFSET * rng.standard_normal(len(pairs))
    curvature = level * np.exp(rng.uniform(np.log(0.05), np.log(0.2)) + logs @ bends)
    skew = rng.choice([-1, 1]) * rng.uniform(0.1, 0.5)
    table = (dict(zip(pairs, values.tolist(), strict=True)) for values in (best, curvature))
    slope = rng.uniform(-0.2, 0.0)
    return Rates(next(table), slope, next(table), skew, rng.uniform(*CLIFF), level * rng.uniform(1.0, 4.0))


@dataclass(frozen=True, eq=False)
class RateStudy:
    """A planted study, and what the learning rate does in it."""

    study: Study
    rates: Rates

    def truth(self, pair: Pair, log_rate: float, D: float) -> float:
        """Loss of a pair at a rate, nats."""
        return self.study.truth(pair, D) + self.rates.cost(pair, log_rate, D)

    def best_truth(self, D: float) -> float:
        """The smallest loss of any pair at its best rate."""
        return min(self.study.truth(pair, D) for pair in self.study.pairs)

    def regret(self, pair: Pair, log_rate: float, D: float) -> float:
        """Excess perplexity of a pair at a rate over the best pair at its best rate."""
        return float(np.expm1(self.truth(pair, log_rate, D) - self.best_truth(D)))

    def best_at(self, log_rate: float, D: float) -> Pair:
        """The pair that is truly best at one rate for all."""
        return min(self.study.pairs, key=lambda pair: self.truth(pair, log_rate, D))

    def metrics(self, tried: Mapping[Pair, Sequence[float]], further: Collection[Run] = ()) -> pd.DataFrame:
        """The calibration's table with every pair at these rates, and further runs: pair, seed and rate of each.

        Runs of a pair have noise of their own, which stays as it is whatever else is trained.
        """
        own = [self._runs(self.study.metrics, pair, rates) for pair, rates in tried.items()]
        seeds = {seed: self.study.further_seed(seed) for seed in sorted({run[1] for run in further})}
        again: dict[tuple[int, Pair], list[float]] = {}
        for pair, seed, rate in further:
            again.setdefault((seed, pair), []).append(rate)
        own += [self._runs(seeds[seed], pair, rates) for (seed, pair), rates in again.items()]
        return pd.concat(own, ignore_index=True)

    def _runs(self, table: pd.DataFrame, pair: Pair, rates: Sequence[float]) -> pd.DataFrame:
        own = table[(table["r_me"] == pair[0]) & (table["r_llm"] == pair[1])]
        rng = np.random.default_rng([self.study.number, 99, *pair, int(own["seed"].max())])
        parts = []
        for number, rate in enumerate(rates):
            luck = 0.0 if number == 0 else self._luck(rng, own)
            heat = own["lr"] / own["lr"].max()
            edge = EDGE * float(rng.standard_normal())
            cost = self.rates.cost(pair, float(np.log(rate)), LARGEST, edge)
            parts.append(
                own.assign(
                    val_loss=own["val_loss"] * np.exp(luck) + cost,
                    lr=heat * rate,
                    peak_lr=rate,
                    run_id=own["run_id"] + f"-{rate:.3g}",
                )
            )
        return pd.concat(parts, ignore_index=True)

    def _luck(self, rng: np.random.Generator, own: pd.DataFrame) -> Floats:
        """Noise of a run of its own, as a log factor on each row: what a first run of the pair has is kept under it."""
        noise, seeds = self.study.noise, own["seed"].nunique()
        return replace(noise, common=0.0).sample(rng, 1, seeds).reshape(-1)


def make_rate_study(number: int, shape: str | None = None) -> RateStudy:
    """The study of this number under a schedule, with a learning rate that matters."""
    study = make_study(2 * number + 1, shape)
    rng = np.random.default_rng([number, 5])
    level = float(np.median([study.truth(pair, LARGEST) for pair in study.pairs]))
    return RateStudy(study, draw_rates(rng, study.pairs, level))
