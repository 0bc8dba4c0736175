"""Runs' validation curves: read from checkpoint metrics, made monotone, and where they come down to a level."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

Floats = NDArray[np.float64]
COLUMNS = ("run_id", "step", "unique_samples", "r_me", "r_llm", "seed", "val_loss")


@dataclass(frozen=True)
class Curve:
    """A run's smoothed validation loss at its checkpoints.

    `steps`: optimizer steps, shape (n,), increasing, positive. `sizes`: unique training samples seen at each
    (effective dataset size D), shape (n,). `loss`: smoothed validation loss, shape (n,), nats per answer
    token. `start_loss`: loss at the run's first record, the start of its total drop. `one_size`: the run was made
    for its last size, and other runs of its pair for other sizes.
    """

    run_id: str
    r_me: int
    r_llm: int
    seed: int
    steps: Floats
    sizes: Floats
    loss: Floats
    start_loss: float
    one_size: bool = False

    @property
    def last_step(self) -> float:
        """The last step at which the run was evaluated."""
        return float(self.steps[-1])

    def loss_by(self, step: float) -> float:
        """Lowest smoothed loss reached by `step`: the floor of the run at the size reached there."""
        return float(self.loss[np.searchsorted(self.steps, step, side="right") - 1])


def require_columns(table: pd.DataFrame, columns: Sequence[str], what: str) -> None:
    """Raise ValueError naming the columns that `table` lacks."""
    missing = [name for name in columns if name not in table.columns]
    if missing:
        raise ValueError(
            f"{what}: missing column(s) {', '.join(missing)}; got {', '.join(map(str, table.columns))}. "
            f"Expected at least {', '.join(columns)}."
        )


def require_one_row_each(table: pd.DataFrame, key: Sequence[str], what: str) -> None:
    """Raise ValueError naming the first key that stands in more than one row."""
    twice = table.duplicated(list(key))
    if twice.any():
        first = table.loc[twice, list(key)].iloc[0].to_dict()
        raise ValueError(
            f"{what}: expected one row per ({', '.join(key)}), got {int(twice.sum())} repeated, first {first}: "
            "drop the duplicates or give the runs distinct run_id."
        )


def read_curves(metrics: pd.DataFrame) -> list[Curve]:
    """Smoothed curves of all runs of a checkpoint-metrics table, in order of first appearance.

    A run is read up to its first non-finite loss; a run with fewer than two positive steps left is skipped, and so is
    one that was made for one size and diverged before it.

    Raises:
        ValueError: a column is missing, a (run_id, step) stands twice, or a run changes its rank pair.
    """
    require_columns(metrics, COLUMNS, "checkpoint metrics")
    require_one_row_each(metrics, ("run_id", "step"), "checkpoint metrics")
    one_size = has_runs_per_size(metrics)
    curves = [_read_curve(str(run_id), rows, one_size) for run_id, rows in metrics.groupby("run_id", sort=False)]
    return [curve for curve in curves if curve is not None]


def _read_curve(run_id: str, recorded: pd.DataFrame, one_size: bool) -> Curve | None:
    _require_one_pair(run_id, recorded)
    rows = _until_diverged(recorded.sort_values("step"))
    trained = rows[rows["step"] > 0]
    if len(trained) < 2 or (one_size and len(rows) < len(recorded)):
        return None
    first = trained.iloc[0]
    return Curve(
        run_id=run_id,
        r_me=int(first["r_me"]),
        r_llm=int(first["r_llm"]),
        seed=int(first["seed"]),
        steps=trained["step"].to_numpy(dtype=np.float64),
        sizes=trained["unique_samples"].to_numpy(dtype=np.float64),
        loss=falling_curve(trained["val_loss"].to_numpy(dtype=np.float64)),
        start_loss=float(rows["val_loss"].iloc[0]),
        one_size=one_size,
    )


def _require_one_pair(run_id: str, rows: pd.DataFrame) -> None:
    pairs = rows[["r_me", "r_llm", "seed"]].drop_duplicates()
    if len(pairs) > 1:
        raise ValueError(
            f"checkpoint metrics: run {run_id} has {len(pairs)} different (r_me, r_llm, seed), expected one: "
            "give each run its own run_id."
        )


def _until_diverged(rows: pd.DataFrame) -> pd.DataFrame:
    finite = np.isfinite(rows["val_loss"].to_numpy(dtype=np.float64))
    return rows if finite.all() else rows.iloc[: int(np.argmin(finite))]


def has_runs_per_size(metrics: pd.DataFrame) -> bool:
    """Whether some pair and seed has runs that end at different sizes D.

    Such runs were each made for their last size: their schedule ends there. What they show before it is the state of a
    longer schedule that is not over, which says nothing of a smaller size.

    Args:
        metrics: checkpoint metrics with run_id, r_me, r_llm, seed and unique_samples.
    """
    runs = metrics.groupby("run_id", sort=False).agg(
        r_me=("r_me", "first"), r_llm=("r_llm", "first"), seed=("seed", "first"), D=("unique_samples", "max")
    )
    return bool((runs.groupby(["r_me", "r_llm", "seed"])["D"].nunique() > 1).any())


def falling_curve(loss: Floats) -> Floats:
    """Closest non-increasing curve to a run's losses, up to the run's lowest point and flat after it.

    Least squares with equal weights: checkpoints are geometric, so equal weight per checkpoint is equal
    weight per unit of log steps. What follows the lowest point is no longer convergence (over-fitting,
    divergence); kept in the regression it would be averaged into the earlier steps.

    Args:
        loss: validation loss at increasing steps, shape (n_checkpoints,), nats per answer token, finite.

    Returns:
        Non-increasing losses, shape (n_checkpoints,).
    """
    lowest = int(np.argmin(loss))
    fitted = isotonic_regression(loss[: lowest + 1], increasing=False).x
    return np.concatenate([fitted, np.full(loss.size - lowest - 1, fitted[-1])])


def first_step_at(steps: Floats, values: Floats, level: float) -> float | None:
    """First step at which a non-increasing curve is down to `level`, linear in log steps between checkpoints.

    Args:
        steps: optimizer steps, shape (n_checkpoints,), increasing, positive.
        values: the curve at those steps, shape (n_checkpoints,), non-increasing.
        level: what the curve has to come down to, in the curve's unit.

    Returns:
        The step; None if the curve never comes down to the level. A curve that starts at or below the
        level gives its first step, which is then only an upper bound: see `starts_at`.
    """
    reached = np.flatnonzero(values <= level)
    if reached.size == 0:
        return None
    after = int(reached[0])
    if after == 0 or values[after] == level:
        return float(steps[after])
    before = after - 1
    share = (values[before] - level) / (values[before] - values[after])
    return float(steps[before] * (steps[after] / steps[before]) ** share)


def starts_at(values: Floats, level: float) -> bool:
    """Whether the curve is at the level by its first checkpoint, so that its time is too short to be seen."""
    return bool(values[0] <= level)


CHECKPOINTS_BEFORE = 5
STEPS_BEFORE = 4.0


def step_of_sizes(curves: Iterable[Curve]) -> dict[int, float]:
    """S_D of every size D that a convergence time can be asked for, ascending.

    A checkpoint serves as a size if it is at least the fifth of its run and its step is at least four times
    the first one's: a time is then seen even where a module converges four times sooner than the slowest.
    Within an epoch every such checkpoint counts; once the dataset is used up D stays, and the first
    checkpoint that reached it gives S_D. Where runs disagree on S_D the earliest is taken. A run that was made for one
    size serves for that one alone, reached at its last step.
    """
    found: dict[int, float] = {}
    for curve in curves:
        for size, step in _usable_sizes(curve):
            found[size] = min(step, found.get(size, step))
    return dict(sorted(found.items()))


def _usable_sizes(curve: Curve) -> list[tuple[int, float]]:
    return [
        (int(curve.sizes[index]), float(curve.steps[index]))
        for index in _candidates(curve)
        if index + 1 >= CHECKPOINTS_BEFORE and curve.steps[index] >= STEPS_BEFORE * curve.steps[0]
    ]


def _candidates(curve: Curve) -> list[int]:
    """Indices of the checkpoints that reach a size."""
    if curve.one_size:
        return [len(curve.steps) - 1]
    _, first_index = np.unique(curve.sizes, return_index=True)
    return [int(index) for index in first_index]
