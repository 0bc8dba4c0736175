"""Signal `trajectory`: when a module's adapter product B A is within eps of where it ends.

| symbol | meaning | shape |
|---|---|---|
| A | LoRA down-projection of one layer | (r, d_in) |
| B | LoRA up-projection of one layer | (d_out, r) |

It reads each module directly, in every run, so nothing is balanced by construction; but it says when the weights stop
moving, not when the loss stops falling. It has no loss level: its threshold is eps. Times are counted in steps at the
peak learning rate (`steps_at_peak`). Only the product B A acts on the model (B and A alone are free up to an
invertible r x r matrix), so distances are taken between products, without forming them.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mars_core.convergence.curves import (
    CHECKPOINTS_BEFORE,
    STEPS_BEFORE,
    falling_curve,
    first_step_at,
    require_columns,
    require_one_row_each,
)
from mars_core.convergence.rows import TimeRow
from mars_core.convergence.signals import Module

Floats = NDArray[np.float64]
COLUMNS = ("run_id", "step", "module", "distance")
RUN_COLUMNS = ("run_id", "step", "unique_samples", "r_me", "r_llm", "seed")
MODULES: dict[str, Module] = {"me": "me", "llm": "llm"}


def trajectory_times(
    metrics: pd.DataFrame, distances: pd.DataFrame, learning_rates: Sequence[float] | None, eps: float
) -> list[TimeRow]:
    """t(D) = first step (at peak rate) from which a module is within eps of its snapshot at S_D.

    As for level `own`, a module that still moved by more than eps in the last doubling of steps had not come
    to rest: it is right-censored at S_D.

    Args:
        metrics: checkpoint metrics, for each run's ranks, seed and unique samples per step.
        distances: `relative_distance` per (run_id, step, module); a column `anchor_step` names the snapshot the
            distance is taken from where that is not the run's last, so that one run can serve several sizes.
        learning_rates: the schedule, one rate per optimizer step; None for a constant rate.
        eps: relative distance that counts as arrived, in (0, 1).
    """
    if not 0.0 < eps < 1.0:
        raise ValueError(f"eps must lie in (0, 1), got {eps}: it is the relative distance that counts as arrived.")
    require_columns(metrics, RUN_COLUMNS, "checkpoint metrics")
    require_columns(distances, COLUMNS, "adapter distances")
    anchored = _with_anchor(distances)
    require_one_row_each(anchored, ("run_id", "module", "anchor_step", "step"), "adapter distances")
    groups = anchored.groupby(["run_id", "module", "anchor_step"], sort=False)
    rows = (_time(metrics, group.sort_values("step"), learning_rates, eps) for _, group in groups)
    return list(_found(rows))


def _with_anchor(distances: pd.DataFrame) -> pd.DataFrame:
    """Distances after initialisation up to their anchor, which is the run's last snapshot unless given."""
    after = distances[distances["step"] > 0]
    if "anchor_step" not in after.columns:
        after = after.assign(anchor_step=after.groupby(["run_id", "module"])["step"].transform("max"))
    return after[after["step"] <= after["anchor_step"]]


def _time(
    metrics: pd.DataFrame, snapshots: pd.DataFrame, learning_rates: Sequence[float] | None, eps: float
) -> TimeRow | None:
    steps = snapshots["step"].to_numpy(dtype=np.float64)
    if len(steps) < CHECKPOINTS_BEFORE or steps[-1] < STEPS_BEFORE * steps[0]:
        return None
    run = _run_at(metrics, snapshots)
    module = _module(str(snapshots["module"].iloc[0]))
    rank = int(run["r_me"] if module == "me" else run["r_llm"])
    if rank == 0:
        return None
    at_peak = steps_at_peak(steps, learning_rates)
    arrived = first_step_at(at_peak, falling_curve(snapshots["distance"].to_numpy(dtype=np.float64)), eps)
    at_rest = arrived is not None and arrived <= at_peak[-1] / 2
    time = arrived if arrived is not None and at_rest else float(at_peak[-1])
    return TimeRow(
        module, rank, int(run["unique_samples"]), float(at_peak[-1]), time, not at_rest,
        str(run["run_id"]), int(run["r_me"]), int(run["r_llm"]), int(run["seed"]), eps,
    )  # fmt: skip


def _run_at(metrics: pd.DataFrame, snapshots: pd.DataFrame) -> dict[str, Any]:
    """The metrics row of the run at the anchor step."""
    run_id, anchor = snapshots["run_id"].iloc[0], snapshots["anchor_step"].iloc[0]
    rows = metrics[(metrics["run_id"] == run_id) & (metrics["step"] == anchor)]
    if len(rows) != 1:
        raise ValueError(
            f"adapter distances: run {run_id} has its anchor at step {anchor}, where the checkpoint metrics have "
            f"{len(rows)} rows, expected one: keep snapshots at evaluated checkpoints."
        )
    return {str(name): value for name, value in rows.iloc[0].items()}


def _module(name: str) -> Module:
    if name not in MODULES:
        raise ValueError(f"adapter distances: unknown module {name!r}, expected 'me' or 'llm'.")
    return MODULES[name]


def _found(rows: Iterable[TimeRow | None]) -> Iterable[TimeRow]:
    return (row for row in rows if row is not None)


Layer = tuple[NDArray[Any], NDArray[Any]]  # (B, A)


def relative_distance(snapshot: Sequence[Layer], last: Sequence[Layer]) -> float:
    """Frobenius distance of a module's products B A from its last snapshot, relative to the last products.

    Args:
        snapshot: (B, A) of every adapted layer of the module, in the order of `last`.
        last: the same at the end of the run.

    Returns:
        sqrt(sum_layers |B A - B' A'|^2 / sum_layers |B' A'|^2), dimensionless: 1 at initialisation (B = 0).

    Raises:
        ValueError: the layers do not correspond, or the last products are all zero.
    """
    _require_same_layers(snapshot, last)
    apart = sum(_squared_distance(one, other) for one, other in zip(snapshot, last, strict=True))
    size = sum(_inner(layer, layer) for layer in last)
    if size <= 0.0:
        raise ValueError("the last adapter products are all zero, so no distance is relative to them: train the module")
    return float(np.sqrt(max(apart, 0.0) / size))


def _squared_distance(one: Layer, other: Layer) -> float:
    """|B A - B' A'|^2, from the thin QR factors of [B, -B'] and [A; A']' so that close snapshots keep their digits."""
    left = _triangle(np.concatenate([_double(one[0]), -_double(other[0])], axis=1))
    right = _triangle(np.concatenate([_double(one[1]), _double(other[1])], axis=0).T)
    return float(np.sum((left @ right.T) ** 2))


def _triangle(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.linalg.qr(matrix, mode="r"))


def _inner(one: Layer, other: Layer) -> float:
    """Sum of the elementwise product of B A and B' A', from r x r matrices."""
    return float(np.sum((_double(one[0]).T @ _double(other[0])) * (_double(one[1]) @ _double(other[1]).T)))


def _double(matrix: NDArray[Any]) -> NDArray[np.float64]:
    return np.asarray(matrix, dtype=np.float64)


def _require_same_layers(snapshot: Sequence[Layer], last: Sequence[Layer]) -> None:
    shapes = [(B.shape[0], A.shape[1]) for B, A in snapshot]
    expected = [(B.shape[0], A.shape[1]) for B, A in last]
    if shapes != expected or not expected:
        raise ValueError(
            f"snapshots must hold the same layers in the same order, got products of shapes {shapes} and {expected}"
        )


def steps_at_peak(steps: Floats, learning_rates: Sequence[float] | None) -> Floats:
    """Optimizer steps at the peak learning rate that move the weights as far as the schedule did.

    A schedule that decays to zero stops every module at the end, converged or not. Counted in
    sum of rate / peak rate, the movement no longer depends on the schedule (for small rates).

    Args:
        steps: optimizer steps, shape (n,), 1 is the first.
        learning_rates: rate of every optimizer step from the first, shape (at least the last step,);
            None for a constant rate, which changes nothing.

    Returns:
        Steps at peak, shape (n,), increasing.

    Raises:
        ValueError: the schedule is shorter than the run, or not positive at its first steps.
    """
    if learning_rates is None:
        return steps
    rates = np.asarray(learning_rates, dtype=np.float64)
    if rates.size < steps.max() or rates.min() < 0.0 or rates.max() <= 0.0:
        raise ValueError(
            f"learning_rates must give one rate >= 0 per optimizer step up to step {int(steps.max())}, got "
            f"{rates.size} rates: pass the schedule of the whole run."
        )
    moved = np.cumsum(rates) / rates.max()
    return np.asarray(moved[steps.astype(int) - 1])
