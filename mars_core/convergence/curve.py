"""One run's smoothed validation curve, and how to read the curves from a checkpoint-metrics table."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mars_core.convergence.run_sizes import has_runs_per_size
from mars_core.convergence.smoothing import falling_curve

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
