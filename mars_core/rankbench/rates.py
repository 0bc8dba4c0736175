"""Best rate of every pair of a cell, from its full runs at several rates. No torch."""

from __future__ import annotations

import numpy as np
import pandas as pd

from mars_core.fitting.learning_rate import RateFit, fit_learning_rates
from mars_core.rankbench.cells import BATCH, Cell
from mars_core.ranks import RankPair


def rate_law(runs: pd.DataFrame) -> RateFit:
    """The learning-rate law of runs of one rule and length that differ in their rate.

    Args:
        runs: checkpoints, columns r_me, r_llm, seed, peak_lr, horizon, step, val_loss; only last ones are used.

    Raises:
        ValueError: no pair has runs at several rates that ended.
    """
    ends = runs[(runs["step"] == runs["horizon"]) & np.isfinite(runs["val_loss"])]
    logs = np.log(ends["peak_lr"])
    table = ends.assign(D=ends["horizon"] * BATCH, value=ends["val_loss"], log_me=logs, log_llm=logs)
    fit = fit_learning_rates(table, float(table["value"].median())) if len(table) else None
    if fit is None:
        raise ValueError("no pair has runs at two learning rates that ended: train the block of rates first")
    return fit


def best_rates(runs: pd.DataFrame, cell: Cell) -> dict[RankPair, float]:
    """Best rate of every pair by that law, inside the rates that were tried."""
    fit, low, high = rate_law(runs), float(runs["peak_lr"].min()), float(runs["peak_lr"].max())
    return {pair: float(np.clip(np.exp(fit.best(pair, cell.samples)[0]), low, high)) for pair in cell.pairs}
