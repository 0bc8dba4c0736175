"""Validation curves of calibration runs as rows that the surface model reads: which checkpoints count, at which size.

| symbol | meaning | shape |
|---|---|---|
| value | log(1 + excess) of the objective: the loss for perplexity, log of a metric | (n_rows,) |
| size | effective dataset size over the largest one that was measured | (n_rows,) |
| seen | unique samples over the most that were seen | (n_rows,) |
| heat | learning rate at the checkpoint over the run's peak: 0 where the run is annealed | (n_rows,) |

A checkpoint inside the warm-up says nothing about a size: the run has hardly moved. It is left out. A checkpoint under
a schedule has not moved as far as a run that ends there: the effective size counts the sum of rate / peak rate, scaled
so that the end of a run keeps its own size. Where no learning rates are known, the size is what was seen.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mars_core.fitting.learning_rate import RateFit
from mars_core.ranks import Pair
from mars_core.surface.common import Common, common_effects
from mars_core.surface.rates import RateEffect, at_best_rates, rate_effect

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Sizes below the largest by more than this factor are left out. What a run does there is mostly its start, which is
# over by the end; read as a part of a power law it turned the order of real pairs at twice the largest size. Without
# a decaying rate the start lasts longer, counted in sizes.
WINDOW = 6.0
WINDOW_AT_CONSTANT_RATE = 4.0


@dataclass(frozen=True, eq=False)
class Curves:
    """Checkpoints of all runs, sorted by run and step.

    value, size, seen, heat: see the module's table. run, pair: index of the row's run and pair, (n_rows,). common:
    what the row shares with others. pairs: rank pairs. seeds: seed of each run. level: what noise is a share of.
    largest: largest dataset size measured, samples. annealed: whether the learning rates are known and fall. rates:
    where runs differ in their peak rate, what that does to them; the values are those at each pair's best rate.
    """

    value: Floats
    size: Floats
    seen: Floats
    heat: Floats
    run: Ints
    pair: Ints
    common: Common
    pairs: tuple[Pair, ...]
    seeds: tuple[int, ...]
    level: float
    largest: float
    annealed: bool
    rates: RateEffect | None = None

    @property
    def n_runs(self) -> int:
        """Number of runs."""
        return len(self.seeds)

    @property
    def near(self) -> NDArray[np.bool_]:
        """Whether a run is near the best rate of its pair, (n_runs,); all are where they have one rate."""
        return np.ones(self.n_runs, dtype=np.bool_) if self.rates is None else self.rates.near


def read_curves(
    points: pd.DataFrame,
    pairs: Collection[Pair] | None = None,
    *,
    level: float | None = None,
    rates: RateFit | None = None,
) -> Curves:
    """Take the checkpoints that count from a table of runs.

    Args:
        points: columns r_me, r_llm, step, D, value, seed, run_id; optional: lr; where runs differ in their peak rate
            log_me and log_llm, its logarithms. One row per run and step.
        pairs: rank pairs to keep; None keeps all.
        level: what noise is a share of; None takes the median value, as is right for a loss.
        rates: the fitted learning-rate law, None where all runs have one rate.
    """
    rows = points.sort_values(["run_id", "step"], kind="stable").reset_index(drop=True)
    if pairs is not None:
        keep = [pair in pairs for pair in zip(rows["r_me"], rows["r_llm"], strict=True)]
        rows = rows[keep].reset_index(drop=True)
    if level is None:
        level = max(float(np.median(np.abs(rows["value"]))), 1e-9)
    knows_rates = "lr" in rows.columns and bool(rows["lr"].notna().all() and (rows["lr"] >= 0).all())
    pieces = [_effective(run, knows_rates) for _, run in rows.groupby("run_id", sort=True)]
    table = pd.concat(pieces, ignore_index=True)
    if rates is not None:
        table = at_best_rates(table, rates)
    largest = float(table["size"].max())
    annealed = bool(table["heat"].min() < 0.5 * table["heat"].max())
    window = WINDOW if annealed else WINDOW_AT_CONSTANT_RATE
    table = table[table["size"] >= largest / window].reset_index(drop=True)
    heat = table["heat"].to_numpy(dtype=np.float64)
    pair_labels, pair_of = _labels(list(zip(table["r_me"].astype(int), table["r_llm"].astype(int), strict=True)))
    run_labels, run_of = _labels(list(zip(table["run_id"], table["seed"].astype(int), strict=True)))
    common = common_effects(table.assign(moment=_moments(table, knows_rates)))
    return Curves(
        value=table["value"].to_numpy(dtype=np.float64),
        size=table["size"].to_numpy(dtype=np.float64) / largest,
        seen=table["D"].to_numpy(dtype=np.float64) / float(table["D"].max()),
        heat=heat if annealed else np.zeros(len(table)),
        run=run_of,
        pair=pair_of,
        common=common,
        level=level,
        pairs=tuple(pair_labels),
        seeds=tuple(seed for _, seed in run_labels),
        largest=largest,
        annealed=annealed,
        rates=None if rates is None else rate_effect(table, rates, run_of),
    )


def _moments(table: pd.DataFrame, knows_rates: bool) -> list[str]:
    """Step and schedule of each row.

    Runs are alike at a step where they are at the same learning rate, or at the same share of peak rates that differ;
    where none is known, runs that were made for several sizes are alike where they have the same length.
    """
    schedules: list[str] = [""] * len(table)
    if knows_rates and "log_llm" in table.columns:
        schedules = [f"{heat:.4f}" for heat in table["heat"]]
    elif knows_rates:
        schedules = [f"{rate:.6g}" for rate in table["lr"]]
    elif table.groupby(["r_me", "r_llm", "seed"])["end"].nunique().max() > 1:
        schedules = [str(end) for end in table["end"]]
    return [f"{step} {schedule}" for step, schedule in zip(table["step"], schedules, strict=True)]


def after_warmup(points: pd.DataFrame) -> pd.DataFrame:
    """The rows of each run from its highest learning rate on; all rows where no rates are known.

    Args:
        points: columns run_id, step; optional: lr.
    """
    if "lr" not in points.columns or points["lr"].isna().any():
        return points
    rows = points.sort_values(["run_id", "step"], kind="stable")
    peak = rows.groupby("run_id")["lr"].transform("max")
    reached = (rows["lr"] == peak).groupby(rows["run_id"]).cummax()
    return rows[reached].reset_index(drop=True)


def _effective(run: pd.DataFrame, knows_rates: bool) -> pd.DataFrame:
    """One run with its effective sizes and heat, without its warm-up."""
    end = int(run["step"].max())
    if not knows_rates or float(run["lr"].max()) <= 0.0:
        return run.assign(size=run["D"].astype(float), heat=1.0, end=end)
    rate = run["lr"].to_numpy(dtype=np.float64)
    steps = run["step"].to_numpy(dtype=np.float64)
    peak = int(np.argmax(rate))
    moved = _moved(steps, rate)
    size = float(run["D"].iloc[-1]) * moved / moved[-1]
    return run.assign(size=size, heat=rate / rate[peak], end=end).iloc[peak:]


def _moved(steps: Floats, rate: Floats) -> Floats:
    """Integral of the learning rate up to each step; before the first checkpoint a rising rate starts from 0."""
    first = 0.0 if len(rate) > 1 and rate[0] < rate.max() else rate[0]
    edges, rates = np.concatenate([[0.0], steps]), np.concatenate([[first], rate])
    return np.cumsum(0.5 * (rates[1:] + rates[:-1]) * np.diff(edges))


def _labels(values: list[Any]) -> tuple[list[Any], Ints]:
    distinct = sorted(set(values))
    at = {value: index for index, value in enumerate(distinct)}
    return distinct, np.array([at[value] for value in values], dtype=np.int64)
