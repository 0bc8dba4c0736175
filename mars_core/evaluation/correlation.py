"""Does perplexity tell accuracy? Pearson's and Spearman's correlation over runs (paper, appendix I)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from mars_core.records import Record

Floats = NDArray[np.float64]

LEVEL = 0.95
FEWEST_FOR_INTERVAL = 4  # both standard errors divide by n - 3
FEW = 10
FEW_ENOUGH_TO_COUNT = 8
DRAWN = 9_999
"""Orders that Spearman's p-value counts of more runs than 8; of so few it counts all, 8! = 40,320 at most."""
MANY = 100  # from here on Student's t is as good as counting, and counting is slow
ON_A_LINE = 1e-12  # a perfect line's coefficient misses 1 by a few roundings


@dataclass(frozen=True)
class Coefficient(Record):
    """A correlation in [-1, 1], its 95% interval and two-sided p-value.

    interval: None for fewer than 4 points and for a value of 1 or -1, where Fisher's z has none.
    """

    value: float
    interval: tuple[float, float] | None
    p_value: float


@dataclass(frozen=True)
class Correlation(Record):
    """Perplexity against accuracy over n runs; coefficients are None where one of the two does not vary.

    doubts: what keeps these numbers from saying more.
    """

    n: int
    pearson: Coefficient | None
    spearman: Coefficient | None
    doubts: tuple[str, ...]


def last_scores(metrics: pd.DataFrame) -> pd.DataFrame:
    """The last checkpoint of each calibration run: r_me, r_llm, seed, perplexity, accuracy (exact match)."""
    last = metrics.sort_values("step").groupby("run_id", as_index=False).tail(1)
    renamed = last.rename(columns={"val_perplexity": "perplexity", "val_accuracy": "accuracy"})
    columns = ["r_me", "r_llm", "seed", "perplexity", "accuracy"]
    return renamed[columns].sort_values(["r_me", "r_llm", "seed"], ignore_index=True)


def correlate(points: pd.DataFrame) -> Correlation:
    """Correlate the columns `perplexity` and `accuracy`.

    Intervals: Fisher's z, with standard error 1 / sqrt(n - 3) for Pearson and sqrt((1 + rho^2 / 2) / (n - 3)) for
    Spearman (Bonett and Wright 2000). p-values: Student's t for Pearson, which takes both as normal; for Spearman the
    share of all orders of the runs that correlate at least as strongly, exact up to 8 runs.

    Args:
        points: one row a run. Where it has columns `r_me` and `r_llm`, runs of one pair are told apart from runs of
            several.

    Raises:
        ValueError: a column is missing, or fewer than 3 rows have both as finite numbers.
    """
    usable = _usable(points)
    perplexity, accuracy = usable["perplexity"].to_numpy(), usable["accuracy"].to_numpy()
    n = len(usable)
    doubts = _doubts(perplexity, accuracy) + _repeats(points.loc[usable.index])
    if np.ptp(perplexity) == 0 or np.ptp(accuracy) == 0:
        return Correlation(n, None, None, doubts)
    pearson = stats.pearsonr(perplexity, accuracy)
    rho, p_value = _spearman(perplexity, accuracy)
    of_values = _coefficient(float(pearson.statistic), float(pearson.pvalue), n, 1.0)
    of_ranks = _coefficient(rho, p_value, n, 1.0 + rho**2 / 2)
    return Correlation(n, of_values, of_ranks, doubts + _without_interval(of_values, of_ranks, n))


def _usable(points: pd.DataFrame) -> pd.DataFrame:
    missing = [name for name in ("perplexity", "accuracy") if name not in points.columns]
    if missing:
        raise ValueError(f"no column {' and '.join(missing)}: got {', '.join(map(str, points.columns))}")
    numbers = points[["perplexity", "accuracy"]].apply(pd.to_numeric, errors="coerce")
    usable: pd.DataFrame = numbers[np.isfinite(numbers.to_numpy(dtype=np.float64)).all(axis=1)].astype(np.float64)
    if len(usable) < 3:
        raise ValueError(f"a correlation needs at least 3 runs with perplexity and accuracy, got {len(usable)}")
    return usable


def _spearman(perplexity: Floats, accuracy: Floats) -> tuple[float, float]:
    """Spearman's rho and its two-sided p-value, which holds with ties too."""
    found, n = stats.spearmanr(perplexity, accuracy), len(perplexity)
    if n >= MANY:
        return float(found.statistic), float(found.pvalue)
    # Ranks are multiples of a half, so these sums are exact, and equal orders compare as equal.
    ranks, others = (stats.rankdata(values) - (n + 1) / 2 for values in (perplexity, accuracy))
    counted = stats.permutation_test(
        (ranks,),
        lambda order, axis: np.abs((order * others).sum(axis=axis)),
        permutation_type="pairings",
        alternative="greater",
        n_resamples=math.factorial(n) if n <= FEW_ENOUGH_TO_COUNT else DRAWN,
        rng=np.random.default_rng(0),
        vectorized=True,
    )
    return float(found.statistic), float(counted.pvalue)


def _coefficient(value: float, p_value: float, n: int, variance: float) -> Coefficient:
    if n < FEWEST_FOR_INTERVAL or abs(value) >= 1.0 - ON_A_LINE:
        return Coefficient(value, None, p_value)
    half = float(stats.norm.ppf(0.5 + LEVEL / 2)) * math.sqrt(variance / (n - 3))
    z = math.atanh(value)
    return Coefficient(value, (math.tanh(z - half), math.tanh(z + half)), p_value)


def _doubts(perplexity: Floats, accuracy: Floats) -> tuple[str, ...]:
    doubts = []
    for name, values in (("perplexity", perplexity), ("accuracy", accuracy)):
        if np.ptp(values) == 0:
            doubts.append(f"{name} is {values[0]:.4g} in every run: there is nothing to correlate")
    if len(perplexity) < FEW:
        doubts.append(f"only {len(perplexity)} runs: the correlation is uncertain, and one run can turn it")
    distinct = len(np.unique(accuracy))
    if 1 < distinct <= len(accuracy) // 2:
        doubts.append(f"only {distinct} different accuracies among {len(accuracy)} runs: many ties")
    return tuple(doubts)


def _repeats(runs: pd.DataFrame) -> tuple[str, ...]:
    """A doubt where several runs (seeds) are of one rank pair."""
    if not {"r_me", "r_llm"} <= set(runs.columns):
        return ()
    pairs = len(runs[["r_me", "r_llm"]].drop_duplicates())
    if pairs == len(runs):
        return ()
    return (
        f"{len(runs)} runs are of {pairs} rank pairs: runs of one pair are not independent, so intervals are too "
        "narrow and p-values too small",
    )


def _without_interval(pearson: Coefficient, spearman: Coefficient, n: int) -> tuple[str, ...]:
    if n < FEWEST_FOR_INTERVAL:
        return (f"no interval: it takes {FEWEST_FOR_INTERVAL} runs",)
    perfect = [name for name, one in (("Pearson", pearson), ("Spearman", spearman)) if one.interval is None]
    return (f"no interval for {' and '.join(perfect)}: a coefficient of 1 or -1 has none",) if perfect else ()


def in_words(found: Correlation) -> str:
    """One line for people."""
    if found.pearson is None or found.spearman is None:
        return f"n = {found.n}: {'; '.join(found.doubts)}"
    named = (("Pearson r", found.pearson), ("Spearman rho", found.spearman))
    return f"n = {found.n}; " + "; ".join(f"{name} = {_show(coefficient)}" for name, coefficient in named)


def _show(coefficient: Coefficient) -> str:
    interval = coefficient.interval
    bounds = "" if interval is None else f" (95% interval {interval[0]:.2f} to {interval[1]:.2f})"
    p = "p < 0.001" if coefficient.p_value < 0.001 else f"p = {coefficient.p_value:.3f}"
    return f"{coefficient.value:.2f}{bounds}, {p}"
