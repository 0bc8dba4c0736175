"""Rules that choose a pair from a calibration: rivals, one short function each, and the product's own.

A rule takes a study's metrics, the size to choose for (unique samples) and a margin (relative excess perplexity below
which a cheaper pair is as good), and returns a pair, or the product's choice, which says more. No rule looks at the
truth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy.stats import t as student_t

from mars_core.fitting import LawFit, fit_law
from mars_core.search import Diverged, Points, Question, read_points
from mars_core.search.both_laws import LawSettings
from mars_core.search.choose import calibrate, choose_with, laws_of
from mars_core.search.objective import PERPLEXITY_OBJECTIVE
from mars_core.search.outlook import Calibration
from planted.ground import Floats, Pair
from planted.study import Study, make_study

Choose = Callable[[Study, int, float], Any]
LAST = 3  # checkpoints that the quadratic looks at
BOUND = 0.975  # one-sided


@dataclass(frozen=True)
class Rule:
    """choose: the rule. margin: what it is called with. states: whether it states verdicts and intervals."""

    choose: Choose
    margin: float = 0.0
    states: bool = False


def best_observed(study: Study, target: int, margin: float) -> Pair:
    """The lowest mean loss over seeds at the largest size."""
    last = study.metrics[study.metrics["step"] == study.metrics["step"].max()]
    means = last.groupby(["r_me", "r_llm"])["val_loss"].mean()
    return min(study.pairs, key=lambda pair: means[pair])


def eq1(study: Study, target: int, margin: float) -> Pair:
    """The smallest prediction of Eq. 1 fitted to all checkpoints."""
    r_me, r_llm = np.array(study.pairs, dtype=np.float64).T
    predicted = _eq1_fit(study).predict({"r_me": r_me, "r_llm": r_llm, "D": np.full(len(r_me), float(target))})
    return study.pairs[int(np.argmin(predicted))]


def largest(study: Study, target: int, margin: float) -> Pair:
    """The pair with the most trainable parameters."""
    return max(study.pairs, key=study.count)


def uniform(study: Study, target: int, margin: float) -> Pair:
    """The reference: equal ranks at the lower middle of the grid."""
    return study.reference


def quadratic(study: Study, target: int, margin: float) -> Pair:
    """The smallest value of a quadratic in log ranks through the last checkpoints."""
    return study.pairs[int(np.argmin(_Quadratic(study).values))]


def quadratic_cheapest(study: Study, target: int, margin: float) -> Pair:
    """The cheapest pair that the same quadratic holds to be within the margin of its best one, surely."""
    fit = _Quadratic(study)
    as_good = np.flatnonzero(fit.excess_bound() <= margin)
    return min((study.pairs[i] for i in as_good), key=study.count)


def product(study: Study, target: int, margin: float, rule: Literal["mars", "paper"]) -> Any:
    """The product's choice: what `mars_core.search.choose_ranks` does, with one fit for all targets and margins."""
    fitted = _fitted(study.number, study.shape)
    question = replace(fitted.question, target_samples=float(target), margin=margin, rule=rule)
    return choose_with(fitted.calibration, fitted.laws, fitted.points, question)


@dataclass(frozen=True, eq=False)
class _Fitted:
    question: Question
    points: Points
    laws: Mapping[str, Any]
    calibration: Calibration


@lru_cache(maxsize=1)
def _fitted(number: int, shape: str) -> _Fitted:
    study = make_study(number, shape)
    runs = dict.fromkeys(study.surface.grid.diverged, "its run is missing")
    question = Question(float(study.targets[0]), study.count, study.reference, constraints=(Diverged(runs),))
    points = read_points(study.metrics, PERPLEXITY_OBJECTIVE)
    laws = laws_of(points, LawSettings(study.reference))
    return _Fitted(question, points, laws, calibrate(points, question))


def mars(study: Study, target: int, margin: float) -> Any:
    """The product's own rule."""
    return product(study, target, margin, "mars")


def paper(study: Study, target: int, margin: float) -> Any:
    """The product's version of the paper's rule."""
    return product(study, target, margin, "paper")


RULES: Mapping[str, Rule] = {
    "best observed": Rule(best_observed),
    "Eq. 1": Rule(eq1),
    "largest": Rule(largest),
    "uniform": Rule(uniform),
    "quadratic": Rule(quadratic),
    "quadratic 0.25%": Rule(quadratic_cheapest, 0.0025),
    "mars 0.25%": Rule(mars, 0.0025, states=True),
    "mars 0": Rule(mars, 0.0, states=True),
    "paper": Rule(paper, 0.0025, states=True),
}


@lru_cache(maxsize=1)
def _eq1_fit(study: Study) -> LawFit:
    """The same for all targets of a study; only the point fit is needed."""
    points = study.metrics.rename(columns={"unique_samples": "D", "val_loss": "loss"})
    return fit_law("performance", points, n_starts=16, n_bootstrap=2, hold_out=False)


class _Quadratic:
    """Least squares on runs' mean losses over the last checkpoints, with a level for each seed.

    The means come to the same values as a level for each checkpoint and seed, as every run has all checkpoints; and
    what is left of them is the noise of whole runs, so the bounds need no model of the checkpoints' correlation.
    """

    def __init__(self, study: Study) -> None:
        runs = _last_means(study.metrics)
        self.terms = _terms(study, np.array(study.pairs))
        own = _terms(study, runs[["r_me", "r_llm"]].to_numpy())
        seeds = runs["seed"].to_numpy()[:, None] == np.unique(runs["seed"])
        design = np.concatenate([own, seeds.astype(np.float64)], axis=1)
        inverse, losses = np.linalg.pinv(design), runs["val_loss"].to_numpy()
        theta, self.freedom = inverse @ losses, len(losses) - int(np.linalg.matrix_rank(design))
        variance = float(np.sum((losses - design @ theta) ** 2)) / max(self.freedom, 1)
        n = own.shape[1]
        self.values: Floats = self.terms @ theta[:n]
        self.covariance = variance * (inverse @ inverse.T)[:n, :n]

    def excess_bound(self) -> Floats:
        """Upper bound of each pair's relative excess perplexity over the pair of the smallest value."""
        best = int(np.argmin(self.values))
        apart = self.terms - self.terms[best]
        error = np.sqrt(np.einsum("ij,jk,ik->i", apart, self.covariance, apart))
        reach = student_t.ppf(BOUND, self.freedom) if self.freedom > 0 else np.inf
        return np.asarray(np.expm1(self.values - self.values[best] + np.where(error > 0, reach * error, 0.0)))


def _last_means(metrics: pd.DataFrame) -> pd.DataFrame:
    last = metrics[metrics["step"].isin(np.unique(metrics["step"])[-LAST:])]
    return last.groupby(["run_id", "r_me", "r_llm", "seed"], as_index=False)["val_loss"].mean()


def _terms(study: Study, pairs: np.ndarray) -> Floats:
    """Terms of the quadratic, as far as the grid carries them: squares need 3 ranks, the product more than 2 by 2."""
    x, y = study.surface.grid.place(pairs.astype(np.float64))
    ranks_me, ranks_llm = ({pair[module] for pair in study.pairs} for module in range(2))
    terms = [x, y]
    terms += [x**2] if len(ranks_me) > 2 else []
    terms += [y**2] if len(ranks_llm) > 2 else []
    terms += [x * y] if len(study.pairs) > len(terms) + 2 else []
    return np.stack(terms, axis=1)
