"""Times to the common levels: every run is asked for the same loss at a size."""

from mars_core.convergence.crossing import first_step_at, starts_at
from mars_core.convergence.loss_levels import LossLevel, LossLevels
from mars_core.convergence.rows import TimeRow, time_row
from mars_core.convergence.selection import ModuleCurve, Selection


def common_times(selection: Selection, levels: LossLevels) -> list[TimeRow]:
    """t(D) = first step at which the run's smoothed loss is down to the level of size D.

    The whole run counts, also past S_D: a slow run that comes down later has its time observed. A run that
    never comes down is right-censored at its last step. A run at the level by its first checkpoint converged
    before anyone looked; it gives no row (freezing the levels leaves out sizes where that happens, so only a
    run added later can be affected).
    """
    return [
        _time(module_curve, level)
        for module_curve in selection.module_curves
        for level in levels.by_scope.get(module_curve.scope, ())
        if not starts_at(module_curve.curve.loss, level.loss)
    ]


def _time(module_curve: ModuleCurve, level: LossLevel) -> TimeRow:
    curve = module_curve.curve
    reached = first_step_at(curve.steps, curve.loss, level.loss)
    steps = curve.last_step if reached is None else reached
    return time_row(module_curve, level.D, level.S_D, steps, reached is None, level.loss)
