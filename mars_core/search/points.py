"""A calibration's table as the points that a choice is made from: whole runs, one value per run and step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mars_core.fitting.learning_rate import RateFit, axes_of, fit_learning_rates
from mars_core.ranks import Pair
from mars_core.search.columns import as_numbers
from mars_core.search.objective import Objective
from mars_core.search.observed import LOG_RATES
from mars_core.surface.rates import paid_by_runs, within

KEYS = ["r_me", "r_llm", "step", "unique_samples", "val_loss"]
LARGEST_LOSS = 100.0  # nats per answer token; even a uniform guess among a million tokens costs 14
SMALLEST_SHARE_OF_POSITIVE = 0.5  # a metric of 0 has no logarithm: it counts as half the smallest positive value


@dataclass(frozen=True, eq=False)
class Points:
    """What was measured.

    runs: columns r_me, r_llm, seed, run_id, step, D (unique samples), val_loss (nats per answer token), loss (the
    objective's quantity), value (an excess is a difference of values), lr where it is known, and where runs differ in
    their peak learning rate log_me and log_llm, its logarithms. table: what the power laws read of it: pairs of
    positive ranks, and of each pair and seed the run nearest its best rate, brought to that rate. diverged: pairs with
    a run that has no finite value (at all of their rates), in words. notes: what was left out or changed. rates: the
    fitted learning-rate law, None where all runs have one rate. nearest: where they have several, of every pair, seed
    and size the run nearest its best rate.
    """

    runs: pd.DataFrame
    table: pd.DataFrame
    diverged: Mapping[Pair, str]
    notes: tuple[str, ...]
    rates: RateFit | None = None
    nearest: frozenset[str] = frozenset()


def read_points(metrics: pd.DataFrame, objective: Objective) -> Points:
    """Read and check a table of runs.

    Args:
        metrics: columns r_me, r_llm, step, unique_samples, val_loss and the objective's; optional: seed, run_id, lr,
            and the peak learning rate of a run as peak_lr, or peak_lr_me and peak_lr_llm. One row per run and step.
            Without run_id a run is a pair, a seed and a rate; without seeds, rows of a pair that repeat every step are
            runs of their own.
        objective: what is minimised.

    Raises:
        ValueError: a column is missing, a cell is unusable, a run has a step twice, rows cannot be told apart as runs,
            or no run of two adapted modules is left.
    """
    _require_columns(metrics, objective)
    metrics = as_numbers(metrics, objective.column)
    _require_positive(metrics)
    rows = metrics.rename(columns={"unique_samples": "D"}).assign(loss=metrics[objective.column].astype(float))
    kept = _with_runs(_with_rates(rows))
    notes: list[str] = []
    unmeasured = kept["loss"].isna() if objective.column != "val_loss" else pd.Series(False, index=kept.index)
    if unmeasured.any():
        notes.append(
            f"{objective.quantity} has no value at {int(unmeasured.sum())} of {len(kept)} checkpoints: left out"
        )
    kept, diverged, lost = _without_diverged(kept[~unmeasured])
    if not ((kept["r_me"] > 0) & (kept["r_llm"] > 0)).any():
        raise ValueError(
            "no run is left to choose from: every row has rank 0, or its run has no finite "
            f"{objective.column}; give runs of pairs of positive ranks"
        )
    _require_single_steps(kept)
    _require_losses(kept, objective)
    kept, zero_note = _positive(kept, objective)
    columns = ["r_me", "r_llm", "seed", "run_id", "step", "D", "val_loss", "loss"]
    columns += [name for name in ("lr", *LOG_RATES) if name in kept.columns]
    runs = kept[columns].sort_values(["run_id", "step"]).reset_index(drop=True)
    runs = runs.groupby(["run_id", "D"], sort=False).tail(1).reset_index(drop=True)  # past an epoch, the last one
    runs["value"] = objective.value(runs["loss"].to_numpy(dtype=np.float64))
    rates = _fit_rates(runs, objective)
    table = runs if rates is None else _at_best_rates(runs, rates, objective)
    nearest = frozenset() if rates is None else frozenset(table["run_id"])
    table = table[(table["r_me"] > 0) & (table["r_llm"] > 0)].reset_index(drop=True)
    if rates is None and LOG_RATES[0] in runs.columns:
        notes.append(
            "runs differ in their learning rate, but no pair has two rates at one size: pairs are compared at the "
            "rates that they had"
        )
    return Points(runs, table, diverged, (*notes, *lost, *zero_note), rates, nearest)


def _with_rates(rows: pd.DataFrame) -> pd.DataFrame:
    """The table with log peak rates as log_me and log_llm, where all are known and runs differ in them."""
    named = [name for name in ("peak_lr_me", "peak_lr_llm") if name in rows.columns]
    if not named and "peak_lr" in rows.columns:
        rows = rows.assign(peak_lr_me=rows["peak_lr"], peak_lr_llm=rows["peak_lr"])
    elif len(named) == 1:
        raise ValueError(
            f"metrics: {named[0]} stands alone, expected peak_lr_me and peak_lr_llm, or peak_lr where both modules "
            "have one rate"
        )
    elif not named:
        return rows
    peaks = rows[["peak_lr_me", "peak_lr_llm"]].astype(np.float64)
    if peaks.isna().all(axis=None):
        return rows
    if peaks.isna().any(axis=None):
        raise ValueError(
            f"metrics: the peak learning rate is missing in {int(peaks.isna().any(axis=1).sum())} of {len(rows)} rows: "
            "give it for every run, or leave the column out"
        )
    me, llm = np.log(peaks.to_numpy()).T
    log_me = np.where(rows["r_me"] > 0, me, llm)  # without an adapter a rate is no rate
    log_llm = np.where(rows["r_llm"] > 0, llm, me)
    if not axes_of(log_me, log_llm, _pairs(rows)):
        return rows
    return rows.assign(log_me=log_me, log_llm=log_llm)


def _fit_rates(runs: pd.DataFrame, objective: Objective) -> RateFit | None:
    if "log_llm" not in runs.columns:
        return None
    ends = runs[runs["step"] == runs.groupby("run_id")["step"].transform("max")]
    return fit_learning_rates(ends, objective.level(ends["value"].to_numpy(dtype=np.float64)))


def _nearest(runs: pd.DataFrame, fit: RateFit) -> pd.DataFrame:
    """Rows of the runs nearest the best rate, with what a run pays for not being there as `paid`."""
    paid, ends = paid_by_runs(runs, fit)
    end = pd.Series(ends, runs.index)
    cell = [runs["r_me"], runs["r_llm"], runs["seed"], end]
    rows = runs.assign(paid=paid)
    rows = rows[paid <= rows["paid"].groupby(cell).transform("min")]
    cells = rows.groupby(["r_me", "r_llm", "seed", end[rows.index]])
    same = [rows[name] == cells[name].transform("first") for name in LOG_RATES]  # not of two that are as near
    return rows[same[0] & same[1]]


def _at_best_rates(runs: pd.DataFrame, fit: RateFit, objective: Objective) -> pd.DataFrame:
    """The nearest runs, less what they pay."""
    rows = _nearest(runs, fit)
    paid = within(rows["paid"].to_numpy(dtype=np.float64), fit.level)
    rows = rows.assign(value=rows["value"] - paid).drop(columns=["paid", *LOG_RATES])
    rows["loss"] = objective.quantity_of(rows["value"].to_numpy(dtype=np.float64))
    return rows[rows["loss"] > 0].reset_index(drop=True)


def _require_columns(metrics: pd.DataFrame, objective: Objective) -> None:
    if not isinstance(metrics, pd.DataFrame):
        raise ValueError(
            f"metrics must be a pandas DataFrame with one row per run and step, got a {type(metrics).__name__}: "
            "pandas.DataFrame(rows) makes one of a list of records"
        )
    needed = list(dict.fromkeys([*KEYS, objective.column]))
    missing = [name for name in needed if name not in metrics.columns]
    if missing:
        raise ValueError(
            f"metrics: missing column(s) {', '.join(missing)}, got {', '.join(map(str, metrics.columns))}; expected "
            f"{', '.join(needed)}, and where they are known seed, run_id, lr and peak_lr; one row per run and step"
        )
    if metrics.empty:
        raise ValueError("metrics has no rows: calibrate first, or check the filter that made the table")


def _require_positive(metrics: pd.DataFrame) -> None:
    if not ((metrics["step"] > 0).all() and (metrics["unique_samples"] > 0).all()):
        raise ValueError("metrics: step and unique_samples must be positive; leave out evaluations before training")


def _with_runs(rows: pd.DataFrame) -> pd.DataFrame:
    """The table with a seed and a run of every row."""
    named = _names_runs(rows)
    if "seed" not in rows.columns:
        rows = rows.assign(seed=0 if named else _numbered(rows))
    if named:
        return rows.assign(run_id=rows["run_id"].astype(str))
    parts = [rows[name].astype(int).astype(str) for name in ("r_me", "r_llm", "seed")]
    parts += [rows[name].map("{:.9g}".format) for name in LOG_RATES if name in rows.columns]
    return rows.assign(run_id=["-".join(names) for names in zip(*parts, strict=True)])


def _names_runs(rows: pd.DataFrame) -> bool:
    missing = int(rows["run_id"].isna().sum()) if "run_id" in rows.columns else len(rows)
    if 0 < missing < len(rows):
        raise ValueError(
            f"metrics: run_id is missing in {missing} of {len(rows)} rows: name the run of every row, or leave the "
            "column out"
        )
    return missing == 0


def _numbered(rows: pd.DataFrame) -> pd.Series:
    """Rows of a pair that repeat a step, numbered as runs; only rows that are surely no copies of one run."""
    checkpoint = ["r_me", "r_llm", *(name for name in LOG_RATES if name in rows.columns), "step"]
    _refuse_as_runs(rows, rows.duplicated([*checkpoint, "D", "val_loss", "loss"]) & rows["loss"].notna(), "are copies")
    repeats = rows.groupby(checkpoint)["step"].transform("size")
    most = repeats.groupby([rows[name] for name in checkpoint[:-1]]).transform("max")
    _refuse_as_runs(rows, repeats < most, "lack a run that other steps of their pair have")
    return rows.groupby(checkpoint).cumcount()


def _refuse_as_runs(rows: pd.DataFrame, bad: pd.Series, what: str) -> None:
    if bad.any():
        first = rows.loc[bad].iloc[0]
        raise ValueError(
            f"metrics: {int(bad.sum())} rows {what}, first pair ({first.r_me:.0f}, {first.r_llm:.0f}) at step "
            f"{first.step:.0f}: rows of one run are counted once, so take copies out, and give every run its own "
            "run_id or seed"
        )


def _require_losses(rows: pd.DataFrame, objective: Objective) -> None:
    """Perplexity is exp(loss): no mean loss is 0, and a sum over tokens overflows."""
    if objective.column != "val_loss":
        return
    bad = rows[~((rows["loss"] > 0.0) & (rows["loss"] <= LARGEST_LOSS))]
    if not bad.empty:
        first = bad.iloc[0]
        raise ValueError(
            f"metrics: val_loss is {first.loss:g} for pair ({first.r_me:.0f}, {first.r_llm:.0f}) at step "
            f"{first.step:.0f}, expected mean nats per answer token, above 0 and at most {LARGEST_LOSS:.0f}: divide "
            "summed losses by their answer tokens"
        )


def _require_single_steps(rows: pd.DataFrame) -> None:
    twice = rows.duplicated(["run_id", "step"])
    if twice.any():
        first = rows.loc[twice].iloc[0]
        raise ValueError(
            f"{int(twice.sum())} rows repeat a step of their run, first pair ({first.r_me}, {first.r_llm}), seed "
            f"{first.seed}, step {first.step}: give each run its own run_id or seed"
        )


def _without_diverged(rows: pd.DataFrame) -> tuple[pd.DataFrame, dict[Pair, str], list[str]]:
    """The table without runs that diverged and their repeats; pairs of which nothing is left, in words; a note on rates
    at which a pair diverged while it did not at others."""
    cell = [name for name in ("r_me", "r_llm", *LOG_RATES) if name in rows.columns]
    bad = ~np.isfinite(rows["loss"].to_numpy(dtype=np.float64))
    lost = pd.Series(bad, rows.index).groupby([rows[name] for name in cell]).transform("any")
    kept = rows[~lost]
    left, first = set(_pairs(kept)), rows[bad].groupby(["r_me", "r_llm"])["step"].min()
    words = {(int(a), int(b)): f"no finite value from step {int(step)}" for (a, b), step in first.items()}
    gone = {pair: said for pair, said in words.items() if pair not in left}
    cells = rows[lost & pd.Series([pair in left for pair in _pairs(rows)], rows.index)].drop_duplicates(cell)
    named = ", ".join(
        f"{pair} at {np.exp(rate):.2g}" for pair, rate in zip(_pairs(cells), cells.get("log_llm", ()), strict=False)
    )
    return kept, gone, [f"runs that diverged at a learning rate are left out: {named}"] if named else []


def _positive(rows: pd.DataFrame, objective: Objective) -> tuple[pd.DataFrame, list[str]]:
    """Zeros of a metric moved to where a logarithm is defined."""
    loss = rows["loss"].to_numpy(dtype=np.float64)
    zero = loss <= 0.0
    if not zero.any() or objective.column == "val_loss":
        return rows, []
    floor = SMALLEST_SHARE_OF_POSITIVE * float(loss[~zero].min()) if (~zero).any() else 1.0
    note = f"{objective.quantity} is 0 at {int(zero.sum())} of {len(rows)} checkpoints: taken as {floor:.3g} there"
    return rows.assign(loss=np.where(zero, floor, loss)), [note]


def _pairs(rows: pd.DataFrame) -> list[Pair]:
    return [(int(a), int(b)) for a, b in zip(rows["r_me"], rows["r_llm"], strict=True)]
