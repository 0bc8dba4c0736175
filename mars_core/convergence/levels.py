"""The loss a run has to come down to.

`common`: one target loss per size for all runs, frozen once, as in time to a target loss (MLPerf). `own`: each run's
own floor at a size plus a share of its total drop.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mars_core.convergence.curves import Curve, first_step_at, read_curves, starts_at, step_of_sizes
from mars_core.convergence.rows import TimeRow, time_row
from mars_core.convergence.signals import ModuleCurve, Selection, select
from mars_core.records import Record


@dataclass(frozen=True)
class LossLevel(Record):
    """The loss to come down to for one size: D unique samples, reached at step S_D; loss in nats per token."""

    D: int
    S_D: float
    loss: float


@dataclass(frozen=True)
class LossLevels(Record):
    """Frozen common levels, per scope (`pairs` for slices; `me` and `llm` for isolated runs) and size.

    Where runs were made for one size each, every size has a scope of its own (`pairs, D = 256`).
    The reference pair is frozen with them: a wider grid would otherwise move its lower middle.
    """

    quantile: float
    reference: tuple[int, int] | None
    by_scope: Mapping[str, tuple[LossLevel, ...]]


def freeze_levels(
    metrics: pd.DataFrame,
    *,
    signal: str = "slice",
    quantile: float = 0.9,
    reference: tuple[int, int] | None = None,
) -> LossLevels:
    """Common levels of the first design's runs: store them and pass them to `convergence_times` from then on.

    Args:
        metrics: checkpoint metrics of the first design, one row per (run_id, step).
        signal: `slice` or `isolated`.
        quantile: which quantile of the runs' floors at a size is the level; in (0, 1].
        reference: rank pair at which the slices cross; default the lower middle of the grid.
    """
    return levels_of(select(signal, read_curves(metrics), reference), quantile)


def levels_of(selection: Selection, quantile: float) -> LossLevels:
    """Per scope and size: the quantile of the floors that the runs reached by S_D."""
    if not 0.0 < quantile <= 1.0:
        raise ValueError(f"quantile must lie in (0, 1], got {quantile}: 0.9 lets nine runs in ten reach the level.")
    by_scope = {scope: tuple(_scope_levels(curves, quantile)) for scope, curves in selection.scopes.items()}
    return LossLevels(quantile, selection.reference, by_scope)


def _scope_levels(curves: Sequence[Curve], quantile: float) -> list[LossLevel]:
    """Levels of the sizes at which no run is already at the level by its first checkpoint."""
    levels = []
    for size, step in step_of_sizes(curves).items():
        loss = _floor_quantile(curves, step, quantile)
        if not any(starts_at(curve.loss, loss) for curve in curves):
            levels.append(LossLevel(size, step, loss))
    return levels


def _floor_quantile(curves: Sequence[Curve], step: float, quantile: float) -> float:
    floors = [curve.loss_by(step) for curve in curves if curve.last_step >= step]
    return float(np.quantile(floors, quantile))


def common_times(selection: Selection, levels: LossLevels) -> list[TimeRow]:
    """t(D) = first step at which the run's smoothed loss is down to the level of size D.

    The whole run counts, also past S_D: a slow run that comes down later has its time observed. A run that
    never comes down is right-censored at its last step. A run at the level by its first checkpoint converged
    before anyone looked; it gives no row (freezing the levels leaves out sizes where that happens, so only a
    run added later can be affected).
    """
    return [
        _common_time(module_curve, level)
        for module_curve in selection.module_curves
        for level in levels.by_scope.get(module_curve.scope, ())
        if not starts_at(module_curve.curve.loss, level.loss)
    ]


def _common_time(module_curve: ModuleCurve, level: LossLevel) -> TimeRow:
    curve = module_curve.curve
    reached = first_step_at(curve.steps, curve.loss, level.loss)
    steps = curve.last_step if reached is None else reached
    return time_row(module_curve, level.D, level.S_D, steps, reached is None, level.loss)


def own_times(selection: Selection, eps: float) -> list[TimeRow]:
    """t(D) = first step at which the run is down to floor + eps * total drop; eps = 0 is the paper's minimum.

    The floor is the smoothed loss at S_D. Had the last doubling of steps still brought more than eps of the
    drop, the run had not converged by S_D: it is right-censored there. (That is the same as t > S_D / 2, so
    with eps = 0 a curve that still falls gives t = S_D, censored, for every pair: no information.)

    A run that was made for one size is over at S_D, by its own schedule: its floor is its end, so its time is
    observed however late it is. With eps = 0 that is the paper's number of steps to the lowest perplexity.
    """
    if not 0.0 <= eps < 1.0:
        raise ValueError(f"eps must lie in [0, 1), got {eps}: it is a share of the run's total drop, 0.05 by default.")
    return [
        _own_time(module_curve, size, step, eps)
        for module_curve in selection.module_curves
        for size, step in step_of_sizes([module_curve.curve]).items()
    ]


def _own_time(module_curve: ModuleCurve, D: int, S_D: float, eps: float) -> TimeRow:
    curve = module_curve.curve
    target = own_level(curve, S_D, eps)
    reached = first_step_at(curve.steps, curve.loss, target)
    converged = reached is not None and (curve.one_size or reached <= S_D / 2)
    steps = reached if reached is not None and converged else S_D
    return time_row(module_curve, D, S_D, steps, not converged, target)


def own_level(curve: Curve, S_D: float, eps: float) -> float:
    """Floor at S_D plus eps of the drop from the run's first record to that floor, nats per answer token."""
    floor = curve.loss_by(S_D)
    return floor + eps * (curve.start_loss - floor)
