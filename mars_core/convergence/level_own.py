"""Level `own`: each run's own floor at a size plus a share of its total drop."""

from mars_core.convergence.crossing import first_step_at
from mars_core.convergence.curve import Curve
from mars_core.convergence.rows import TimeRow, time_row
from mars_core.convergence.selection import ModuleCurve, Selection
from mars_core.convergence.sizes import step_of_sizes


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
        _time(module_curve, size, step, eps)
        for module_curve in selection.module_curves
        for size, step in step_of_sizes([module_curve.curve]).items()
    ]


def _time(module_curve: ModuleCurve, D: int, S_D: float, eps: float) -> TimeRow:
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
