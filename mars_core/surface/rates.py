"""Runs at several learning rates: what each pays for not being at its pair's best rate.

A run's values are brought to the best rate of its pair by the fitted law (`mars_core.fitting.learning_rate`). That law
is not known exactly: its coefficients enter the equations once more, linearised about the fit, with their prior, so
that all runs together decide them; and each run is doubted by a share of what it pays, since the law is no more than
the bottom of a valley.

Runs of one pair and seed share luck (the order of the samples, the first weights), whatever their rates: they have one
level in the equations, beside which each scatters by what the law's fit has seen.

A run far from its best rate says little of how a pair goes on with data: of such runs the end alone counts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mars_core.fitting.learning_rate import RateFit, above_best, doubt_of

Floats = NDArray[np.float64]
FAR = 0.2  # of the level: a run that pays more is near nothing, even if no run of its pair is nearer
MOST = 0.8  # of the level
NEAR = 0.005  # of the level: a run that pays less is near its pair's best rate


@dataclass(frozen=True, eq=False)
class RateEffect:
    """The law's part in the equations.

    columns: derivatives of the penalty by phi, (n_rows, p). mean, sd: prior of phi less the fit's, (p,). doubt: what
    the law misses of a run, a standard deviation, (n_runs,). scatter: of runs about the law, their checkpoint's own
    scatter among it. near: whether a run is near its best rate, (n_runs,). cell: index of pair, seed and size of each
    run, (n_runs,).
    """

    columns: Floats
    mean: Floats
    sd: Floats
    doubt: Floats
    scatter: float
    near: NDArray[np.bool_]
    cell: NDArray[np.int64]


def at_best_rates(table: pd.DataFrame, fit: RateFit) -> pd.DataFrame:
    """Checkpoints brought to the best rate of their pair; of runs far from it the last alone.

    Args:
        table: one row per run and step: r_me, r_llm, seed, run_id, step, D, value, log_me, log_llm, sorted by run and
            step.
        fit: the law.

    Returns:
        The table with value less `penalty`, and of each row's run `doubt`, how far the law may be off for it, and
        `near`, whether it is near its best rate.
    """
    run, (cost, ends), level = table["run_id"], paid_by_runs(table, fit), fit.level
    cell = [table[name] for name in ("r_me", "r_llm", "seed")]
    least = pd.Series(cost, table.index).groupby(cell).transform("min").to_numpy()
    near = (cost <= NEAR * level) | ((cost <= least) & (cost <= FAR * level)) | (cost <= cost.min())
    last = (table["step"] == table["step"].groupby(run).transform("max")).to_numpy()
    doubt = doubt_of(cost, _seen(table, ends), level)
    value = table["value"] - within(cost, level)
    brought = table.assign(value=value, penalty=cost, doubt=doubt, near=near, end_size=ends)
    kept: pd.DataFrame = brought[near | last].reset_index(drop=True)
    return kept


def paid_by_runs(table: pd.DataFrame, fit: RateFit) -> tuple[Floats, Floats]:
    """What the run of each row pays for not being at its pair's best rate, and the size it ends at, (n_rows,) each.

    Args:
        table: columns r_me, r_llm, run_id, D, log_me, log_llm.
        fit: the law.
    """
    ends = table.groupby("run_id")["D"].transform("max").to_numpy(dtype=np.float64)
    return fit.law.penalty(fit.phi, fit.log_rates(table), _pairs(table), ends), ends


def within(cost: Floats, level: float) -> Floats:
    """What a run pays, at most most of the level: no loss is brought to 0 by a parabola that goes on for ever."""
    return np.minimum(cost, MOST * level)


def rate_effect(table: pd.DataFrame, fit: RateFit, run: NDArray[np.int64]) -> RateEffect:
    """The law's part in the equations of these rows.

    Args:
        table: as `at_best_rates` returns it.
        fit: the law.
        run: index of each row's run.
    """
    sizes = table["end_size"].to_numpy(dtype=np.float64)
    columns = fit.law.jacobian(fit.phi, fit.log_rates(table), _pairs(table), sizes)
    first = table.iloc[np.unique(run, return_index=True)[1]]
    cell = np.asarray(first.groupby(["r_me", "r_llm", "seed", "end_size"]).ngroup(), dtype=np.int64)
    doubt = first["doubt"].to_numpy(dtype=np.float64)
    near = first["near"].to_numpy(dtype=np.bool_)
    return RateEffect(columns, fit.prior_mean - fit.phi, fit.prior_sd, doubt, fit.scatter, near, cell)


def _seen(table: pd.DataFrame, ends: Floats) -> Floats:
    """How far the run of each row ended above the best one of its pair, seed and size, (n_rows,)."""
    last = table.groupby("run_id")["value"].transform("last")
    return above_best(last, [table[name] for name in ("r_me", "r_llm", "seed")] + [pd.Series(ends, table.index)])


def _pairs(table: pd.DataFrame) -> list[tuple[int, int]]:
    return [(int(r_me), int(r_llm)) for r_me, r_llm in zip(table["r_me"], table["r_llm"], strict=True)]
