"""Statuses of a fit: each flag is one function, one rule, stated with its threshold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mars_core.fitting.differences import RANKS
from mars_core.fitting.holdout import STEPS_PER_RANK
from mars_core.fitting.result import HeldOut, Severity, Status
from mars_core.fitting.solve import Solution
from mars_core.fitting.table import Table
from mars_core.laws import get_law
from mars_core.laws.law import Floats, Law

COLLAPSED_FLOOR = 1e-3  # share of the smallest target below which a floor counts as collapsed
COLLAPSED_DRAWS = 0.025  # share of bootstrap draws without a floor from which on it is not told from none
WRONG_SIGN_SHARE = 0.975  # of bootstrap draws with the wrong sign
LEAST_AGREEMENT = 0.75  # share of starts that must reach the best objective
LARGEST_ERROR_RATIO = 0.9  # of the best trivial rival's held-out error; from it on the law does not beat it
SINGULAR = 1e16  # condition number of J'J from which on it is singular in double precision
LARGEST_CONDITION = 1e8
LARGEST_CENSORED_SHARE = 0.5
MISS_ERRORS = 4.0  # standard errors by which the mean of the points at one size may lie off the law
SMALLEST_MISS = 0.01  # relative; a smaller miss matters to nobody
FEWEST_AT_SIZE = 4


@dataclass(frozen=True)
class Evidence:
    """All that the flags look at.

    Attributes:
        solution: the fit.
        table: the points it was fitted to.
        draws: bootstrap coefficients, natural, (n_draws, n_params).
        condition_number: of J'J in centred internal coefficients.
        held_out: error on held-out points.
    """

    solution: Solution
    table: Table
    draws: Floats
    condition_number: float
    held_out: HeldOut | None

    @property
    def law(self) -> Law:
        """The fitted law."""
        return self.solution.problem.law


def statuses(evidence: Evidence) -> tuple[Status, ...]:
    """Every status that holds, in a fixed order."""
    checks = (
        _too_few_points,
        _at_bound,
        _floor_collapsed,
        _wrong_sign,
        _no_measurable_effect,
        _censored_share,
        _starts_disagree,
        _ill_conditioned,
        _misses_its_points,
        _no_better_than_trivial,
        _differences_not_predicted,
        _not_validated,
    )
    return tuple(status for check in checks for status in check(evidence))


def condition_number(solution: Solution) -> float:
    """Condition number of J'J over the points, centred internal coefficients."""
    J = solution.problem.jacobian(solution.phi)
    values = np.linalg.svd(J, compute_uv=False)
    return float((values[0] / values[-1]) ** 2) if values[-1] > 0 else float("inf")


def free_directions(solution: Solution) -> Floats:
    """Directions in the internal coefficients along which no point changes, (k, n_params): J'J is singular there."""
    _, values, rows = np.linalg.svd(solution.problem.jacobian(solution.phi))
    padded = np.pad(values, (0, len(rows) - len(values)))
    return np.asarray(rows[padded**2 * SINGULAR <= values[0] ** 2])


def widened(solution: Solution, low: Floats, high: Floats) -> tuple[Floats, Floats]:
    """Intervals that also hold what a coefficient may be along a free direction, up to the bounds.

    A bootstrap starts every draw at the solution and does not move along such a direction, so it shows no spread there.

    low, high: the bootstrap's intervals, (n_params,).
    """
    problem = solution.problem
    for direction in free_directions(solution):
        moving = np.abs(direction) > 1e-6
        to_low = (problem.lower - solution.phi)[moving] / direction[moving]
        to_high = (problem.upper - solution.phi)[moving] / direction[moving]
        ends = (np.maximum(to_low, to_high).min(), np.minimum(to_low, to_high).max())
        phis = np.array([solution.phi + end * np.where(moving, direction, 0.0) for end in ends])
        values = problem.law.natural(problem.centring.raw(phis))
        low, high = np.minimum(low, values.min(axis=0)), np.maximum(high, values.max(axis=0))
    return low, high


def _too_few_points(evidence: Evidence) -> list[Status]:
    n_observed = int(np.sum(~evidence.table.censored))
    needed = evidence.law.n_params + 2
    if n_observed > needed:
        return []
    message = (
        f"{n_observed} observed points for {evidence.law.n_params} coefficients, expected more than {needed}: "
        "add ranks, sizes or seeds before trusting the intervals"
    )
    return [Status("too_few_points", message, "error")]


def _at_bound(evidence: Evidence) -> list[Status]:
    """A coefficient other than a collapsing floor ended on a bound of its range."""
    problem, law = evidence.solution.problem, evidence.law
    found = []
    for at, symbol in enumerate(law.symbols):
        value, low, high = evidence.solution.phi[at], problem.lower[at], problem.upper[at]
        slack = 1e-6 * (high - low)
        on_low, on_high = value <= low + slack, value >= high - slack
        if on_high or (on_low and symbol != law.floor):
            found.append(Status("at_bound", _bound_message(evidence, at, on_low), "warning"))
    return found


def _bound_message(evidence: Evidence, at: int, on_low: bool) -> str:
    law, problem = evidence.law, evidence.solution.problem
    symbol = law.symbols[at]
    bound = problem.lower[at] if on_low else problem.upper[at]
    shown = f"a size of {np.exp(bound):.3g} at the data's centre" if symbol in law.scales else f"{bound:.3g}"
    side = "lower" if on_low else "upper"
    asked = law.scale_bounds.get(symbol)
    if on_low and asked is not None and asked != get_law(law.name).scale_bounds.get(symbol):
        return (
            f"{symbol} ended at the least value that was asked for ({asked[0]:g}): the data want less; "
            "fit without that limit to see how much"
        )
    return (
        f"{symbol} ended on its {side} bound ({shown}): the data do not determine it; "
        "use a form without it or widen ranks and sizes"
    )


def _floor_collapsed(evidence: Evidence) -> list[Status]:
    law = evidence.law
    if law.floor is None:
        return []
    limit = COLLAPSED_FLOOR * float(evidence.table.y.min())
    at = law.index(law.floor)
    floor, share = float(evidence.solution.theta[at]), float(np.mean(evidence.draws[:, at] < limit))
    if floor < limit:
        message = (
            f"{law.floor} = {floor:.3g} is below {COLLAPSED_FLOOR:g} of the smallest {law.target} (in {share:.0%} of "
            "bootstrap draws too): the data show no floor; do not read it as irreducible, and expect "
            "extrapolations to be too low"
        )
        return [Status("floor_collapsed", message, "warning")]
    if share >= COLLAPSED_DRAWS:
        message = (
            f"{law.floor} = {floor:.3g}, but {share:.0%} of bootstrap draws have no floor at all: the data do not "
            "tell this floor from none; larger sizes would"
        )
        return [Status("floor_collapsed", message, "info")]
    return []


def _wrong_sign(evidence: Evidence) -> list[Status]:
    law = evidence.law
    found = []
    for symbol, expected in law.expected_signs.items():
        value = float(evidence.solution.theta[law.index(symbol)])
        share = float(np.mean(np.sign(evidence.draws[:, law.index(symbol)]) == -expected))
        if np.sign(value) == -expected and share >= WRONG_SIGN_SHARE:
            message = (
                f"{symbol} = {value:.3g} where the paper expects a {'positive' if expected > 0 else 'negative'} "
                f"exponent ({share:.0%} of bootstrap draws agree): do not extrapolate along this input"
            )
            found.append(Status("wrong_sign", message, "error"))
    return found


def _no_measurable_effect(evidence: Evidence) -> list[Status]:
    """An exponent that the data do not tell from zero: its input has no effect that these runs can measure."""
    law = evidence.law
    found = []
    for symbol in law.expected_signs:
        low, high = np.quantile(evidence.draws[:, law.index(symbol)], [1 - WRONG_SIGN_SHARE, WRONG_SIGN_SHARE])
        if low <= 0 <= high:
            message = (
                f"{symbol} lies between {low:.3g} and {high:.3g}: these runs do not tell its effect from none; "
                "choose that input by cost, or add seeds to measure it"
            )
            found.append(Status("no_measurable_effect", message, "info"))
    return found


def _censored_share(evidence: Evidence) -> list[Status]:
    share = float(np.mean(evidence.table.censored))
    if share == 0:
        return []
    severity: Severity = "warning" if share > LARGEST_CENSORED_SHARE else "info"
    message = f"{share:.0%} of the points are right-censored (their true value is larger than recorded)" + (
        ": lengthen the runs or choose a level that more runs reach" if severity == "warning" else ""
    )
    return [Status("censored_share", message, severity)]


def _starts_disagree(evidence: Evidence) -> list[Status]:
    share = evidence.solution.start_agreement
    if share >= LEAST_AGREEMENT:
        return []
    message = f"only {share:.0%} of the starts reached the best objective: use more starts or a simpler form"
    return [Status("starts_disagree", message, "warning")]


def _ill_conditioned(evidence: Evidence) -> list[Status]:
    if evidence.condition_number <= LARGEST_CONDITION:
        return []
    message = (
        f"condition number {evidence.condition_number:.2g} of J'J (limit {LARGEST_CONDITION:g}): some coefficients "
        "trade off freely; read predictions, not single coefficients"
    )
    if len(free_directions(evidence.solution)):
        message += " (their intervals hold all that their bounds allow, since the points do not tell them apart)"
    return [Status("ill_conditioned", message, "warning")]


def _misses_its_points(evidence: Evidence) -> list[Status]:
    """At some size all points together lie off the law by more than they scatter: its form does not hold there."""
    table, column = evidence.table, evidence.law.size_column
    if column not in table.inputs:
        return []
    residual = -evidence.solution.problem.residuals(evidence.solution.phi)[0]  # log of observed over predicted
    worst, at = 0.0, 0.0
    for size in np.unique(table.inputs[column]):
        own = residual[(table.inputs[column] == size) & ~table.censored]
        if len(own) < FEWEST_AT_SIZE:
            continue
        miss, error = float(own.mean()), float(own.std(ddof=1)) / len(own) ** 0.5
        if abs(miss) > max(MISS_ERRORS * error, SMALLEST_MISS, abs(worst)):
            worst, at = miss, float(size)
    if worst == 0.0:
        return []
    message = (
        f"at {column} = {at:g} the points lie {abs(worst):.1%} {'above' if worst > 0 else 'below'} the law on average, "
        "by more than they scatter: its form does not hold there (a schedule's end, warm-up, another epoch); do not "
        "read predictions closer than that"
    )
    return [Status("misses_its_points", message, "warning")]


def _no_better_than_trivial(evidence: Evidence) -> list[Status]:
    """The law errs at least `LARGEST_ERROR_RATIO` times as much as its best trivial rival on held-out points.

    Law C's rival has a level per rank and is compared at ranks that neither side has seen; see
    `mars_core.fitting.holdout`. Where no rank can be left out there is no fair comparison and no flag.
    """
    held_out = evidence.held_out
    if held_out is None or held_out.best_rival is None:
        return []
    name, mape, rival, where = held_out.best_rival, held_out.mape, held_out.rivals[held_out.best_rival], ""
    if name == STEPS_PER_RANK:
        if held_out.unseen_rank_mape is None:
            return []
        mape, rival = held_out.unseen_rank_mape, held_out.unseen_rank_rivals[name]
        where = ", each rank predicted from the others"
    if mape < LARGEST_ERROR_RATIO * rival:
        return []
    message = (
        f"on held-out points ({held_out.rule}{where}) the law errs by {mape:.2%}, its trivial rival "
        f"{name} by {rival:.2%}: the law adds nothing there (at least {1 - LARGEST_ERROR_RATIO:.0%} "
        "less error is expected)"
    )
    return [Status("no_better_than_trivial", message, "warning")]


def _differences_not_predicted(evidence: Evidence) -> list[Status]:
    """Law P's differences between pairs err at least `LARGEST_ERROR_RATIO` times as much as no differences at all.

    The rival is the law without ranks, held to what a choice of ranks needs: see `mars_core.fitting.differences`.
    """
    held_out = evidence.held_out
    if held_out is None or held_out.difference_error is None or held_out.no_difference_error is None:
        return []
    error, none = held_out.difference_error, held_out.no_difference_error
    if error < LARGEST_ERROR_RATIO * none:
        return []
    message = (
        f"on held-out points ({held_out.rule}) the differences that the law predicts between rank pairs err by "
        f"{error:.2%}, predicting no difference errs by {none:.2%} (at least {1 - LARGEST_ERROR_RATIO:.0%} less error "
        "is expected of the law): it cannot rank pairs"
    )
    return [Status("differences_not_predicted", message, "error")]


def _not_validated(evidence: Evidence) -> list[Status]:
    """No held-out points could test the law against its trivial rivals: that it is not flagged means nothing."""
    law, held_out = evidence.law, evidence.held_out
    if not law.trivial_rivals:
        return []
    if held_out is None:
        why = f"no points of {law.size_column} could be held out and the rest still carry the law"
    elif STEPS_PER_RANK in held_out.rivals and held_out.unseen_rank_mape is None:
        why = "no rank could be left out and predicted from the others"
    elif set(RANKS) <= set(law.inputs) and held_out.difference_error is None:
        why = "no rank pair could be left out and predicted from the others"
    else:
        return []
    message = f"{why}, so nothing shows that the law beats a trivial rival: add ranks or sizes"
    return [Status("not_validated", message, "warning")]
