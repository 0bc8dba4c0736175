"""Does perplexity tell accuracy? Pearson's and Spearman's correlation over runs (paper, appendix I)."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

Floats = NDArray[np.float64]

LEVEL = 0.95
FEWEST_FOR_INTERVAL = 4  # both standard errors divide by n - 3
FEW = 10


@dataclass(frozen=True)
class Coefficient:
    """A correlation in [-1, 1], its 95% interval (None for fewer than 4 points) and two-sided p-value."""

    value: float
    interval: tuple[float, float] | None
    p_value: float


@dataclass(frozen=True)
class Correlation:
    """Perplexity against accuracy over n runs; coefficients are None where one of the two does not vary.

    doubts: what keeps these numbers from saying more.
    """

    n: int
    pearson: Coefficient | None
    spearman: Coefficient | None
    doubts: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self) | {"doubts": list(self.doubts)}


def last_scores(metrics: pd.DataFrame) -> pd.DataFrame:
    """The last checkpoint of each calibration run: r_me, r_llm, seed, perplexity, accuracy (exact match)."""
    last = metrics.sort_values("step").groupby("run_id", as_index=False).tail(1)
    renamed = last.rename(columns={"val_perplexity": "perplexity", "val_accuracy": "accuracy"})
    columns = ["r_me", "r_llm", "seed", "perplexity", "accuracy"]
    return renamed[columns].sort_values(["r_me", "r_llm", "seed"], ignore_index=True)


def correlate(points: pd.DataFrame) -> Correlation:
    """Correlate the columns `perplexity` and `accuracy`.

    Intervals: Fisher's z, with standard error 1 / sqrt(n - 3) for Pearson and sqrt((1 + rho^2 / 2) / (n - 3)) for
    Spearman (Bonett and Wright 2000).

    Raises:
        ValueError: a column is missing, or fewer than 3 rows have both as finite numbers.
    """
    perplexity, accuracy = _columns(points)
    n = len(perplexity)
    doubts = _doubts(perplexity, accuracy)
    if np.ptp(perplexity) == 0 or np.ptp(accuracy) == 0:
        return Correlation(n, None, None, doubts)
    pearson, spearman = stats.pearsonr(perplexity, accuracy), stats.spearmanr(perplexity, accuracy)
    rho = float(spearman.statistic)
    return Correlation(
        n,
        _coefficient(float(pearson.statistic), float(pearson.pvalue), n, 1.0),
        _coefficient(rho, float(spearman.pvalue), n, 1.0 + rho**2 / 2),
        doubts,
    )


def _columns(points: pd.DataFrame) -> tuple[Floats, Floats]:
    missing = [name for name in ("perplexity", "accuracy") if name not in points.columns]
    if missing:
        raise ValueError(f"no column {' and '.join(missing)}: got {', '.join(map(str, points.columns))}")
    numbers = points[["perplexity", "accuracy"]].apply(pd.to_numeric, errors="coerce")
    usable = numbers[np.isfinite(numbers.to_numpy(dtype=np.float64)).all(axis=1)]
    if len(usable) < 3:
        raise ValueError(f"a correlation needs at least 3 runs with perplexity and accuracy, got {len(usable)}")
    return usable["perplexity"].to_numpy(dtype=np.float64), usable["accuracy"].to_numpy(dtype=np.float64)


def _coefficient(value: float, p_value: float, n: int, variance: float) -> Coefficient:
    if n < FEWEST_FOR_INTERVAL:
        return Coefficient(value, None, p_value)
    if abs(value) >= 1.0:
        return Coefficient(value, (value, value), p_value)
    half = float(stats.norm.ppf(0.5 + LEVEL / 2)) * math.sqrt(variance / (n - 3))
    z = math.atanh(value)
    return Coefficient(value, (math.tanh(z - half), math.tanh(z + half)), p_value)


def _doubts(perplexity: Floats, accuracy: Floats) -> tuple[str, ...]:
    doubts = []
    for name, values in (("perplexity", perplexity), ("accuracy", accuracy)):
        if np.ptp(values) == 0:
            doubts.append(f"{name} is {values[0]:.4g} in every run: there is nothing to correlate")
    if len(perplexity) < FEW:
        doubts.append(f"only {len(perplexity)} runs: the interval is wide, and one run can turn the result")
    distinct = len(np.unique(accuracy))
    if 1 < distinct <= len(accuracy) // 2:
        doubts.append(f"only {distinct} different accuracies among {len(accuracy)} runs: many ties")
    return tuple(doubts)


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
