"""Convergence times of both modules from checkpoint metrics."""

from collections.abc import Mapping, Sequence
from typing import Literal

import pandas as pd

from mars_core.convergence.curves import CHECKPOINTS_BEFORE, STEPS_BEFORE, read_curves
from mars_core.convergence.errors import NoConvergenceTimes
from mars_core.convergence.levels import LossLevels, common_times, levels_of, own_times
from mars_core.convergence.rows import TimeRow, table_of
from mars_core.convergence.signals import select
from mars_core.convergence.trajectory import trajectory_times

SignalName = Literal["slice", "isolated", "trajectory"]
LevelName = Literal["common", "own"]


def convergence_times(
    metrics: pd.DataFrame,
    *,
    signal: SignalName = "slice",
    level: LevelName = "common",
    eps: float = 0.05,
    quantile: float = 0.9,
    reference: tuple[int, int] | None = None,
    levels: LossLevels | None = None,
    distances: pd.DataFrame | None = None,
    learning_rates: Sequence[float] | None = None,
) -> pd.DataFrame:
    """Steps to convergence per module, rank and size: the data of law C (Eq. 2).

    Where a pair and seed has runs that end at different sizes, each run gives the time to its own last size alone.

    Args:
        metrics: checkpoint metrics, one row per (run_id, step), with columns run_id, step, unique_samples,
            r_me, r_llm, seed, val_loss (nats per answer token).
        signal: `slice` (vary one rank, hold the other at the reference) or `isolated` (the other rank is 0),
            or `trajectory` (adapter products; needs `distances`, has no loss level).
        level: `common` (one loss per size for all runs) or `own` (the run's floor plus eps of its drop).
        eps: share of the total drop (level `own`), relative distance (signal `trajectory`).
        quantile: of the floors at a size, level `common` only and only where no `levels` are given.
        reference: (r_me, r_llm) where the slices cross; default the one frozen with
            `levels`, else the lower middle of the grid.
        levels: common levels frozen by an earlier design (`freeze_levels`), so that new runs move nothing.
        distances: `relative_distance` per (run_id, step, module), signal `trajectory` only.
        learning_rates: schedule to divide out, one rate per optimizer step, signal `trajectory` only.

    Returns:
        One row per (module, run, size): module, r, D, S_D, steps, censored, run_id, r_me, r_llm, seed,
        target. `attrs["levels"]` holds the common levels used, as `LossLevels.to_json` writes them.

    Raises:
        ValueError: a column is missing, a key stands twice, the reference has no run, a name is unknown.
        NoConvergenceTimes: no size has enough checkpoints before it, or none gave a time.
    """
    if signal == "trajectory":
        notes = {"signal": signal, "eps": eps}
        return _table(trajectory_times(metrics, _required(distances), learning_rates, eps), notes)
    frozen = levels.reference if levels is not None else None
    selection = select(signal, read_curves(metrics), reference or frozen)
    if level == "own":
        return _table(own_times(selection, eps), {"level": "own", "eps": eps, "signal": signal})
    if level == "common":
        used = levels or levels_of(selection, quantile)
        return _table(common_times(selection, used), {"level": "common", "levels": used.to_json(), "signal": signal})
    raise ValueError(f"unknown level {level!r}, expected 'common' or 'own'.")


def _required(distances: pd.DataFrame | None) -> pd.DataFrame:
    if distances is None:
        raise ValueError(
            "signal 'trajectory' needs distances=, one row per (run_id, step, module): see relative_distance"
        )
    return distances


def _table(rows: list[TimeRow], notes: Mapping[str, object]) -> pd.DataFrame:
    if not rows:
        raise NoConvergenceTimes(
            f"no size has a convergence time: a size needs at least {CHECKPOINTS_BEFORE} checkpoints up to it, the "
            f"first at no more than 1/{STEPS_BEFORE:.0f} of its steps, and runs that start above its level. "
            "Evaluate earlier and more often, train longer, or take diverged runs out of the first design."
        )
    table = table_of(rows)
    table.attrs.update(notes)
    return table
