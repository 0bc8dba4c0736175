"""A calibration's table as the points that a choice is made from: whole runs, one value per run and step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mars_core.ranks import Pair
from mars_core.search.columns import as_numbers
from mars_core.search.objective import Objective

KEYS = ["r_me", "r_llm", "step", "unique_samples", "val_loss"]
LARGEST_LOSS = 100.0  # nats per answer token; even a uniform guess among a million tokens costs 14
SMALLEST_SHARE_OF_POSITIVE = 0.5  # a metric of 0 has no logarithm: it counts as half the smallest positive value


@dataclass(frozen=True, eq=False)
class Points:
    """What was measured.

    table: columns r_me, r_llm, seed, run_id, step, D (unique samples), val_loss (nats per answer token), loss (the
    objective's quantity), value (an excess is a difference of values), and lr where it is known. diverged: pairs with a
    run that has no finite value, in words. notes: what was left out or changed.
    """

    table: pd.DataFrame
    diverged: Mapping[Pair, str]
    notes: tuple[str, ...]


def read_points(metrics: pd.DataFrame, objective: Objective) -> Points:
    """Read and check a table of runs.

    Args:
        metrics: columns r_me, r_llm, step, unique_samples, val_loss and the objective's; optional: seed, run_id, lr.
            One row per run and step. Without run_id a run is a pair and a seed; without seeds, rows of a pair that
            repeat every step are runs of their own.
        objective: what is minimised.

    Raises:
        ValueError: a column is missing, a cell is unusable, a run has a step twice, rows cannot be told apart as runs,
            or no run of two adapted modules is left.
    """
    _require_columns(metrics, objective)
    metrics = as_numbers(metrics, objective.column)
    _require_positive(metrics)
    rows = metrics.rename(columns={"unique_samples": "D"}).assign(loss=metrics[objective.column].astype(float))
    rows = _with_runs(rows)
    kept = rows[(rows["r_me"] > 0) & (rows["r_llm"] > 0)]
    notes = _rank_zero_note(rows)
    unmeasured = kept["loss"].isna() if objective.column != "val_loss" else pd.Series(False, index=kept.index)
    if unmeasured.any():
        notes.append(
            f"{objective.quantity} has no value at {int(unmeasured.sum())} of {len(kept)} checkpoints: left out"
        )
    kept = kept[~unmeasured]
    diverged = _diverged(kept)
    kept = kept[[pair not in diverged for pair in _pairs(kept)]]
    if kept.empty:
        raise ValueError(
            "no run is left to choose from: every row has rank 0, or its run has no finite "
            f"{objective.column}; give runs of pairs of positive ranks"
        )
    _require_single_steps(kept)
    _require_losses(kept, objective)
    kept, zero_note = _positive(kept, objective)
    columns = ["r_me", "r_llm", "seed", "run_id", "step", "D", "val_loss", "loss"]
    columns += ["lr"] * ("lr" in kept.columns)
    table = kept[columns].sort_values(["run_id", "step"]).reset_index(drop=True)
    table = table.groupby(["run_id", "D"], sort=False).tail(1).reset_index(drop=True)  # past an epoch, the last one
    table["value"] = objective.value(table["loss"].to_numpy(dtype=np.float64))
    return Points(table, diverged, (*notes, *zero_note))


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
            f"{', '.join(needed)}, and where they are known seed, run_id and lr; one row per run and step"
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
    return rows.assign(run_id=parts[0] + "-" + parts[1] + "-" + parts[2])


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
    checkpoint = ["r_me", "r_llm", "step"]
    _refuse_as_runs(rows, rows.duplicated([*checkpoint, "D", "val_loss", "loss"]) & rows["loss"].notna(), "are copies")
    repeats = rows.groupby(checkpoint)["step"].transform("size")
    most = repeats.groupby([rows["r_me"], rows["r_llm"]]).transform("max")
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


def _rank_zero_note(rows: pd.DataFrame) -> list[str]:
    zero = int(((rows["r_me"] <= 0) | (rows["r_llm"] <= 0)).sum())
    if not zero:
        return []
    return [f"{zero} rows of runs with a module at rank 0 take no part: a power of the rank has no value there"]


def _diverged(rows: pd.DataFrame) -> dict[Pair, str]:
    bad = rows[~np.isfinite(rows["loss"].to_numpy(dtype=np.float64))]
    pairs = _pairs(bad)
    steps = bad["step"].to_numpy()
    first = {pair: min(int(s) for p, s in zip(pairs, steps, strict=True) if p == pair) for pair in set(pairs)}
    return {pair: f"no finite value from step {step}" for pair, step in first.items()}


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
