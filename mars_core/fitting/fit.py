"""Fit a law to a table of points: `fit_law` is the one entry."""

from __future__ import annotations

from typing import Any

import numpy as np

from mars_core.fitting.bootstrap import bootstrap
from mars_core.fitting.diagnostics import Evidence, condition_number, statuses, widened
from mars_core.fitting.holdout import Split, given_rows, held_out_error, largest_sizes
from mars_core.fitting.profile import profiles
from mars_core.fitting.result import HeldOut, LawFit, finite_or_none
from mars_core.fitting.solve import Solution, solve
from mars_core.fitting.table import DEFAULT_GROUP, Table, read_table
from mars_core.laws import get_law
from mars_core.laws.law import Floats, Law


def fit_law(
    law: Law | str,
    points: Any,
    *,
    delta: float = 1e-3,
    n_starts: int | None = None,
    n_bootstrap: int = 200,
    seed: int = 0,
    group: str | None = DEFAULT_GROUP,
    level: float = 0.95,
    hold_out: Any = True,
) -> LawFit:
    """Fit a law by Huber loss on log residuals, with bootstrap intervals, held-out error and statuses.

    Args:
        law: a `Law` or its name.
        points: DataFrame or mapping with the law's columns; optional columns: `censored` (the target is a
            lower limit), `S_D` (step at which size D is reached; law C's rival), `run_id`, `seed`.
        delta: Huber threshold on log residuals.
        n_starts: starting points of the fit; None takes the law's own number.
        n_bootstrap: bootstrap draws.
        seed: of starts and bootstrap.
        group: column naming the run a row belongs to; the bootstrap resamples runs, never rows of one run.
            Rows are resampled one by one where the table has no `run_id` or `group` is None.
        level: coverage of the intervals.
        hold_out: True holds out the largest size, False nothing, an array of booleans those rows.

    Returns:
        The fit.

    Raises:
        ValueError: the table cannot be used; the message names rows and remedy.
    """
    form = get_law(law) if isinstance(law, str) else law
    n_starts = form.n_starts if n_starts is None else n_starts
    _require_settings(delta, n_starts, n_bootstrap, level)
    table = read_table(form, points, group)
    solution = solve(form, table, delta, n_starts, seed)
    draws = bootstrap(solution, table, n_bootstrap, seed)
    split = _split(form, table, hold_out)
    held_out = None if split is None else held_out_error(form, table, split, delta, seed)
    return _assemble(solution, table, draws, held_out, level)


def _assemble(solution: Solution, table: Table, draws: Floats, held_out: HeldOut | None, level: float) -> LawFit:
    law, problem = solution.problem.law, solution.problem
    natural = law.natural(problem.centring.raw(draws))
    tail = 50.0 * (1.0 - level)
    low, high = np.percentile(natural, [tail, 100.0 - tail], axis=0)
    low, high = widened(solution, low, high)
    condition = condition_number(solution)
    evidence = Evidence(solution, table, natural, condition, held_out)
    return LawFit(
        law=law.name,
        coefficients=dict(zip(law.symbols, solution.theta.tolist(), strict=True)),
        intervals={s: (float(low[i]), float(high[i])) for i, s in enumerate(law.symbols)},
        draws=natural,
        objective=solution.objective,
        delta=problem.delta,
        level=level,
        n_points=table.n_points,
        n_censored=int(table.censored.sum()),
        n_groups=table.n_groups,
        grouped_by=table.grouped_by,
        statuses=statuses(evidence),
        held_out=held_out,
        start_agreement=solution.start_agreement,
        condition_number=finite_or_none(condition),
        correlations=_correlations(draws),
        profiles=profiles(solution, *np.percentile(draws, [tail, 100.0 - tail], axis=0)),
        noise_scale=float(np.median(np.abs(problem.residuals(solution.phi)[0]))),
    )


def _correlations(draws: Floats) -> Floats:
    """Correlations of the draws; a coefficient that never moves correlates with nothing."""
    spread = draws.std(axis=0)
    scaled = (draws - draws.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    correlations = scaled.T @ scaled / len(draws)
    np.fill_diagonal(correlations, 1.0)
    return np.asarray(correlations)


def _split(law: Law, table: Table, hold_out: Any) -> Split | None:
    if isinstance(hold_out, bool):
        return largest_sizes(law, table) if hold_out else None
    return given_rows(hold_out, table.n_points)


def _require_settings(delta: float, n_starts: int, n_bootstrap: int, level: float) -> None:
    if not delta > 0:
        raise ValueError(f"delta must be positive, got {delta}: 1e-3 is the usual threshold on log residuals")
    if n_starts < 1 or n_bootstrap < 2:
        raise ValueError(f"need at least 1 start and 2 bootstrap draws, got {n_starts} and {n_bootstrap}")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}: 0.95 is usual")
