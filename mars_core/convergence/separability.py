"""Is law C separable? Fig. 2b and appendix E: lines of log time against log size, parallel for all ranks.

Each run gives one slope d ln t / d ln D; where every size has a run of its own, the runs of a pair and seed give one.
Runs are independent while sizes of one run are not, so the slopes are the data: they are regressed on ln r, and
Student's t says whether the slope changes with the rank.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import linregress, t

from mars_core.fitting import LawFit, Status
from mars_core.records import Record

Floats = NDArray[np.float64]
Separable = Literal["separable", "not separable", "undecided"]

MATERIAL = 0.1  # change of slope over the rank range below which lines count as parallel
CONFIDENCE = 0.95
FEWEST_RUNS, FEWEST_RANKS, FEWEST_SIZES = 4, 3, 3


@dataclass(frozen=True)
class Separability(Record):
    """Whether a module's lines are parallel.

    `slope_change`: how much larger d ln t / d ln D is at the largest rank than at the smallest; `interval` its
    95% interval; both None where there were too few runs, ranks or sizes. `slopes`: mean slope per rank.
    """

    verdict: Separable
    slope_change: float | None
    interval: tuple[float, float] | None
    slopes: dict[int, float]
    n_runs: int
    message: str


def separability(times: pd.DataFrame, floor: float = 0.0) -> Separability:
    """Test one module's convergence times for parallel lines.

    Args:
        times: rows of one module from `convergence_times`. Sizes at which any of them is censored are left out:
            keeping only the runs that arrived would bend the lines.
        floor: law C's E in steps, taken off before the logarithm (Eq. 2 is separable in t - E).
    """
    slopes = _slopes(_complete_sizes(times), floor)
    ranks = slopes["r"].to_numpy(dtype=np.float64)
    if len(slopes) < FEWEST_RUNS or len(set(ranks)) < FEWEST_RANKS:
        message = (
            f"separability of law C is undecided: {len(slopes)} runs of {len(set(ranks))} ranks have {FEWEST_SIZES} or "
            f"more sizes without censoring, expected at least {FEWEST_RUNS} runs of {FEWEST_RANKS} ranks"
        )
        return Separability("undecided", None, None, _per_rank(slopes), len(slopes), message)
    change, half = _change_over_ranks(np.log(ranks), slopes["slope"].to_numpy(dtype=np.float64))
    verdict = _verdict(change, half)
    return Separability(
        verdict, change, (change - half, change + half), _per_rank(slopes), len(slopes), _message(verdict, change, half)
    )


def with_separability(fit: LawFit, times: pd.DataFrame) -> LawFit:
    """The fit of law C with the verdict on separability among its statuses."""
    found = separability(times, floor=fit.coefficients.get("E", 0.0))
    code = {"separable": "separable", "not separable": "not_separable", "undecided": "separability_undecided"}
    severity: Literal["info", "warning"] = "warning" if found.verdict == "not separable" else "info"
    return replace(fit, statuses=(*fit.statuses, Status(code[found.verdict], found.message, severity)))


def _complete_sizes(times: pd.DataFrame) -> pd.DataFrame:
    censored = set(times.loc[times["censored"].astype(bool), "D"])
    return times[~times["D"].isin(censored)]


def _slopes(times: pd.DataFrame, floor: float) -> pd.DataFrame:
    """Slope of ln(t - floor) on ln D per line with enough sizes above the floor."""
    above = times[times["steps"] > floor]
    rows = [
        (int(run["r"].iloc[0]), float(np.polyfit(np.log(run["D"]), np.log(run["steps"] - floor), 1)[0]))
        for _, run in above.groupby(_line(times), sort=False)
        if run["D"].nunique() >= FEWEST_SIZES
    ]
    return pd.DataFrame(rows, columns=["r", "slope"])


def _line(times: pd.DataFrame) -> list[str]:
    """What tells lines apart: the run, or the pair and seed where every size has a run of its own."""
    pair = ["r_me", "r_llm", "seed"]
    one_size_each = (times.groupby("run_id")["D"].nunique() == 1).all()
    return pair if one_size_each and set(pair) <= set(times.columns) else ["run_id"]


def _change_over_ranks(log_ranks: Floats, slopes: Floats) -> tuple[float, float]:
    """Change of slope from the smallest to the largest rank, and the half-width of its interval."""
    if np.ptp(slopes) == 0.0:  # linregress has no error of a line through equal values
        return 0.0, 0.0
    line = linregress(log_ranks, slopes)
    span = float(np.ptp(log_ranks))
    half = float(t.ppf(0.5 + CONFIDENCE / 2, len(slopes) - 2) * line.stderr)
    return float(line.slope) * span, half * span


def _verdict(change: float, half: float) -> Separable:
    if abs(change) > max(half, MATERIAL):
        return "not separable"
    if abs(change) + half <= 2 * MATERIAL:
        return "separable"
    return "undecided"


def _message(verdict: Separable, change: float, half: float) -> str:
    found = (
        f"d ln t / d ln D changes by {change:+.2f} (95% interval {change - half:+.2f} to {change + half:+.2f}) "
        "from the smallest rank to the largest: "
    )
    return found + _MEANING[verdict]


_MEANING: dict[Separable, str] = {
    "separable": "lines are parallel, law C is separable",
    "not separable": "lines are not parallel, so the effect of rank depends on size; do not extrapolate the balance",
    "undecided": "too noisy to tell whether lines are parallel; add seeds",
}


def _per_rank(slopes: pd.DataFrame) -> dict[int, float]:
    return {int(rank): float(slopes.loc[slopes["r"] == rank, "slope"].mean()) for rank in sorted(set(slopes["r"]))}
