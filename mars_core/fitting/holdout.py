"""Error on held-out points, for a law and for its trivial rivals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mars_core.fitting.differences import held_out_differences
from mars_core.fitting.result import HeldOut
from mars_core.fitting.solve import Solution, solve
from mars_core.fitting.table import Table, rows_text
from mars_core.laws import LAWS
from mars_core.laws.law import Columns, Floats, Law

Bools = NDArray[np.bool_]
Predictor = Callable[[Table], Floats]
HOLD_OUT_STARTS = 32
STEPS_PER_RANK = "steps_per_rank"  # law C's trivial rival
LARGEST_SHARE = 0.34  # hold out one size level if that leaves two thirds of the points, else the top fifth


@dataclass(frozen=True)
class Split:
    """Which rows are held out, and the rule in words."""

    rule: str
    test: Bools


def largest_sizes(law: Law, table: Table) -> Split:
    """Hold out the largest size; the largest fifth where sizes are all different.

    Of a law whose size is a loss, the smallest instead: there lies what it is asked to predict.
    """
    if law.smallest_last:
        return smallest_values(table, law.size_column)
    return largest_values(table, law.size_column)


def largest_values(table: Table, column: str) -> Split:
    """Hold out the rows at the largest value of a column; the largest fifth where all values differ."""
    values = table.inputs[column]
    levels = np.unique(values)
    threshold = float(levels[-1])
    if len(levels) > max(20, table.n_points // 4):
        threshold = float(np.quantile(values, 0.8))
    return Split(f"{column} >= {threshold:g}", values >= threshold)


def smallest_values(table: Table, column: str) -> Split:
    """Hold out the rows at the smallest value of a column; the smallest fifth where all values differ."""
    values = table.inputs[column]
    levels = np.unique(values)
    threshold = float(levels[0])
    if len(levels) > max(20, table.n_points // 4):
        threshold = float(np.quantile(values, 0.2))
    return Split(f"{column} <= {threshold:g}", values <= threshold)


def given_rows(rows: Any, n_points: int) -> Split:
    """Hold out the caller's own rows."""
    test = np.asarray(rows)
    if test.dtype != np.bool_ or test.shape != (n_points,):
        raise ValueError(
            f"hold_out must be True, False or one boolean per row ({n_points}), got shape {test.shape} of {test.dtype}"
        )
    if test.all() or not test.any():
        raise ValueError(
            f"hold_out must leave rows to fit and rows to test, got {int(test.sum())} of {n_points} held out"
            + (f" ({rows_text(test)})" if test.any() else "")
        )
    return Split("the caller's rows", test)


def held_out_error(law: Law, table: Table, split: Split, delta: float, seed: int) -> HeldOut | None:
    """Fit the law and its trivial rivals without the split's rows and measure both there.

    Returns:
        None where the remaining rows cannot carry the law (too few points, or an input that no longer varies).
    """
    train, test = table.subset(~split.test), table.subset(split.test)
    if not can_fit(law, train):
        return None
    solution = solve(law, train, delta, HOLD_OUT_STARTS, seed)
    predict = predictor_of(solution)
    errors = relative_errors(predict(test), test)
    differences = held_out_differences(solution, train, test)
    rivals = {
        name: float(np.mean(relative_errors(rival(test), test)))
        for name, rival in _rivals(law, train, delta, seed).items()
    }
    found = HeldOut(
        rule=split.rule,
        n_train=train.n_points,
        n_test=test.n_points,
        train_mape=float(np.mean(relative_errors(predict(train), train))),
        mape=float(np.mean(errors)),
        largest_error=float(np.max(errors)),
        rivals=rivals,
        difference_error=differences.law if differences else None,
        no_difference_error=differences.none if differences else None,
    )
    return _with_unseen_ranks(found, law, table, split, delta, seed) if STEPS_PER_RANK in rivals else found


def _with_unseen_ranks(found: HeldOut, law: Law, table: Table, split: Split, delta: float, seed: int) -> HeldOut:
    """Error on the split's rows of one rank, law and rival fitted without that rank, averaged over the ranks.

    Law C and t = c(r) * S_D cannot be compared fairly at ranks that both have seen: with one run per rank, c(r)
    remembers the level of the very run that it is tested on, luck included, which a law of two coefficients in the
    rank cannot. Without the rank's runs neither side knows that luck. The rival has to carry the median level of
    the other ranks over, law C its power law: the law is ahead exactly as far as ranks act as it says. A paired
    test over the runs would not do instead: the rival's memory helps it in every run, and four runs that share
    one fitted size exponent are not four independent differences.

    Unchanged where no rank can be left out (fewer than three ranks, or too few points without one).
    """
    ranks = table.inputs["r"]
    errors = []
    for rank in np.unique(ranks[split.test & ~table.censored]):
        train = table.subset(~split.test & (ranks != rank))
        if not can_fit(law, train):
            continue
        test = table.subset(split.test & (ranks == rank))
        predictors = (fitted_predictor(law, train, delta, seed), steps_per_rank(train))
        errors.append([float(np.mean(relative_errors(predict(test), test))) for predict in predictors])
    if not errors:
        return found
    of_law, of_rival = np.mean(errors, axis=0)
    return replace(found, unseen_rank_mape=float(of_law), unseen_rank_rivals={STEPS_PER_RANK: float(of_rival)})


def relative_errors(predicted: Floats, table: Table) -> Floats:
    """|predicted / observed - 1|, (n_points,); a censored point errs only where the prediction is too low."""
    signed = predicted / table.y - 1.0
    return np.where(table.censored, np.maximum(-signed, 0.0), np.abs(signed))


def can_fit(law: Law, table: Table) -> bool:
    """Whether a table has more observed points than coefficients and every input varies."""
    varies = all(len(np.unique(table.inputs[column])) > 1 for column in law.inputs)
    return varies and int(np.sum(~table.censored)) > law.n_params


def fitted_predictor(law: Law, train: Table, delta: float, seed: int) -> Predictor:
    """Fit the law on `train`; the result predicts any table's targets."""
    return predictor_of(solve(law, train, delta, HOLD_OUT_STARTS, seed))


def predictor_of(solution: Solution) -> Predictor:
    """Predicts any table's targets by a fit."""
    law, theta = solution.problem.law, solution.theta

    def predict(table: Table) -> Floats:
        return law.predict(theta, _inputs(law, table))

    return predict


def steps_per_rank(train: Table) -> Predictor:
    """Law C's trivial rival: t = c(r) * S_D, with c(r) the median of t / S_D over the rank's observed points.

    S_D is the step at which size D is reached; proportional to D where the table does not give it. A rank
    never observed uncensored takes the largest ratio it is known to exceed, a rank never seen the median level.
    """
    ratios = np.log(train.y / _reached_at(train))
    ranks = train.inputs["r"]
    level = {float(rank): _level(ratios[ranks == rank], train.censored[ranks == rank]) for rank in np.unique(ranks)}
    overall = float(np.median(list(level.values())))

    def predict(table: Table) -> Floats:
        c = np.array([level.get(float(rank), overall) for rank in table.inputs["r"]])
        return np.asarray(np.exp(c) * _reached_at(table))

    return predict


def _level(log_ratios: Floats, censored: Bools) -> float:
    observed = log_ratios[~censored]
    return float(np.median(observed)) if len(observed) else float(np.max(log_ratios))


def _reached_at(table: Table) -> Floats:
    return table.inputs["D"] if table.reached_at is None else table.reached_at


def _rivals(law: Law, train: Table, delta: float, seed: int) -> dict[str, Predictor]:
    found: dict[str, Predictor] = {}
    for name in law.trivial_rivals:
        if name == STEPS_PER_RANK:
            found[name] = steps_per_rank(train)
        elif can_fit(LAWS[name], train):
            found[name] = fitted_predictor(LAWS[name], train, delta, seed)
    return found


def _inputs(law: Law, table: Table) -> Columns:
    return {column: table.inputs[column] for column in law.inputs}
