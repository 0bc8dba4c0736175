"""Fit law P and the law C of both modules to checkpoint metrics: what every choice starts from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from mars_core.convergence import LossLevels, NoConvergenceTimes, convergence_times, with_separability
from mars_core.convergence.times import LevelName, SignalName
from mars_core.fitting import LawFit, fit_law
from mars_core.search.fitted_laws import MODULES, FittedLaws
from mars_core.search.objective import PERPLEXITY_OBJECTIVE, Objective
from mars_core.search.points import Points
from mars_core.search.run_ends import run_ends
from mars_core.surface import after_warmup

# Seeds of their own: with one seed, the n-th draw of both law C fits would take the same runs by position.
BOOTSTRAP_SEEDS = {"performance": 0, "me": 1, "llm": 2}


@dataclass(frozen=True)
class LawSettings:
    """How both laws are fitted.

    reference: pair at which law C's slices cross. eps: share of a run's drop that level `own` leaves.
    """

    reference: tuple[int, int]
    delta: float = 1e-3
    starts: int = 64
    bootstrap: int = 200
    signal: SignalName = "slice"
    level: LevelName = "common"
    eps: float = 0.05


@dataclass(frozen=True, eq=False)
class Times:
    """Convergence times of both modules, or the cause why there are none; `signal` and `level` say how they came."""

    table: pd.DataFrame
    cause: str | None
    signal: str
    level: str


def times_from_curves(metrics: pd.DataFrame, settings: LawSettings, levels: LossLevels | None) -> Times:
    """Convergence times read off the validation curves; `levels` are frozen ones, None to take them from these runs."""
    try:
        table = convergence_times(
            metrics,
            signal=settings.signal,
            level=settings.level,
            eps=settings.eps,
            reference=settings.reference,
            levels=levels,
        )
    except NoConvergenceTimes as error:
        return Times(pd.DataFrame({"module": []}), str(error), settings.signal, settings.level)
    return Times(table, None, settings.signal, settings.level)


def laws_from(
    points: Points, times: Times, settings: LawSettings, objective: Objective = PERPLEXITY_OBJECTIVE
) -> FittedLaws:
    """Fit law P (Eq. 1) to the points after the warm-up and law C to `times`; no fit leaves a cause.

    objective: what the points' `loss` holds.
    """
    late = run_ends(after_warmup(points.table).assign(unique_samples=lambda rows: rows["D"]))
    performance, causes = _fit_or_cause({"performance": late}, "performance", settings)
    modules = {module: times.cause or times.table[times.table["module"] == module] for module in MODULES}
    convergence, no_convergence = _fit_or_cause(modules, "convergence", settings)
    rows = times.table.to_dict("records")
    return FittedLaws(
        performance=performance["performance"],
        convergence=convergence,
        causes=causes | no_convergence,
        convergence_times=tuple({str(name): value for name, value in row.items()} for row in rows),
        reference=settings.reference,
        signal=times.signal,
        level=times.level,
        objective=objective.name,
        objective_notes=tuple(points.notes),
    )


def _fit_or_cause(
    tables: Mapping[str, pd.DataFrame | str], law: str, settings: LawSettings
) -> tuple[dict[str, LawFit | None], dict[str, str | None]]:
    """Fit a law to each table; a table that is a sentence, or cannot be fitted, becomes a cause."""
    fits: dict[str, LawFit | None] = {}
    causes: dict[str, str | None] = {}
    for name, points in tables.items():
        fits[name], causes[name] = None, points if isinstance(points, str) else None
        if isinstance(points, str):
            continue
        try:
            fit = fit_law(
                law,
                points,
                delta=settings.delta,
                n_starts=settings.starts,
                n_bootstrap=settings.bootstrap,
                seed=BOOTSTRAP_SEEDS[name],
            )
            fits[name] = with_separability(fit, points) if law == "convergence" else fit
        except ValueError as error:  # too few or unusable points: the search falls back and says why
            causes[name] = str(error)
    return fits, causes
