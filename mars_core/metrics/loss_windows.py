"""The training loss that stands for a checkpoint: a mean over a window of steps (MLLM-SFT paper, section 7).

The loss of one step is mostly the luck of its batch. Two windows are used: the steps since the last evaluation, and all
steps since the start.
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Window = Literal["interval", "cumulative"]
Floats = NDArray[np.float64]


def windowed(steps: Floats, interval_means: Floats, window: Window) -> Floats:
    """Loss per evaluation of one run.

    Args:
        steps: optimizer steps at which the run was evaluated, rising, (n,).
        interval_means: mean training loss since the evaluation before, (n,).
        window: `interval` returns them as they are, `cumulative` the mean over all steps since the start.
    """
    if window == "interval":
        return interval_means
    lengths = np.diff(steps, prepend=0.0)
    return np.asarray(np.cumsum(lengths * interval_means) / steps)


def with_window(points: pd.DataFrame, window: Window) -> pd.DataFrame:
    """The rows that have a score, with their windowed loss as column `loss`.

    Args:
        points: columns step, train_loss and score; run_id where there are several runs. Rows without a score only
            add their training loss: log as often as you like. train_loss is the mean since the run's row before.
        window: see `windowed`.

    Raises:
        ValueError: the window is unknown, or a column is missing.
    """
    if window not in get_args(Window):
        raise ValueError(f"unknown window {window!r}, expected one of {', '.join(get_args(Window))}")
    missing = [column for column in ("step", "train_loss", "score") if column not in points]
    if missing:
        raise ValueError(f"a loss window needs the columns step, train_loss and score; missing: {missing}")
    groups = points.groupby("run_id", sort=False) if "run_id" in points else [("", points)]
    return pd.concat([_of_run(rows.sort_values("step"), window) for _, rows in groups], ignore_index=True)


def _of_run(rows: pd.DataFrame, window: Window) -> pd.DataFrame:
    steps = rows["step"].to_numpy(dtype=np.float64)
    if (np.diff(steps, prepend=0.0) <= 0).any():
        raise ValueError(f"steps of a run must be positive and differ, got {steps.tolist()}: add a run_id column")
    losses = rows["train_loss"].to_numpy(dtype=np.float64)
    scored = rows["score"].notna().to_numpy()
    cumulative = windowed(steps, losses, "cumulative")
    kept = rows[scored]
    if window == "cumulative":
        return kept.assign(loss=cumulative[scored])
    # The mean between two scored rows, from the running sums of all rows.
    sums = (cumulative * steps)[scored]
    return kept.assign(loss=np.diff(sums, prepend=0.0) / np.diff(steps[scored], prepend=0.0))
