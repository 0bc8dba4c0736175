"""Laws and choice from imported runs, by the same code that a study's own runs go through."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import pandas as pd

from mars_core.convergence import LossLevels, NoConvergenceTimes, freeze_levels, reference_pair
from mars_core.importing.rows import ImportedRuns
from mars_core.importing.times import given_times
from mars_core.ranks import Pair
from mars_core.rates import one_rate
from mars_core.search import Choice, Points, choose_from, read_points
from mars_core.search import Question as Choosing
from mars_core.search.both_laws import LawSettings, Times, laws_from, times_from_curves
from mars_core.search.fitted_laws import FittedLaws
from mars_core.search.objective import PERPLEXITY_OBJECTIVE

# LoRA parameters are exactly linear in the ranks; what is recorded may be rounded.
COUNT_TOLERANCE = 1e-3
COST_IN_RANKS = (
    "the cost of a pair is taken as r_me + r_llm: --parameters-per-rank gives the true parameter counts "
    "(`mars model inspect MODEL` shows them)"
)


@dataclass(frozen=True)
class Question:
    """What to fit and what to choose for; None takes what the runs suggest.

    target_samples: dataset size to choose for, default the largest in the runs. ranks_me, ranks_llm: available ranks,
    default those of the runs. reference: pair at which law C's slices cross. parameters_per_rank: LoRA parameters
    per unit of vision rank and of LLM rank. learning_rate: what would be trained with without a search.
    """

    target_samples: int | None = None
    ranks_me: tuple[int, ...] | None = None
    ranks_llm: tuple[int, ...] | None = None
    reference: Pair | None = None
    parameters_per_rank: tuple[float, float] | None = None
    margin: float = 0.0025
    learning_rate: float | None = None
    rule: Literal["mars", "paper"] = "mars"
    starts: int = 64
    bootstrap: int = 200


@dataclass(frozen=True, eq=False)
class ImportedLaws:
    """Fitted laws, the choice, and notes on both."""

    laws: FittedLaws
    choice: Choice
    notes: tuple[str, ...]


def analyse(runs: ImportedRuns, question: Question) -> ImportedLaws:
    """Fit law P and law C to imported runs and choose a pair.

    Raises:
        ValueError: a setting cannot be used.
    """
    metrics, pairs = runs.metrics, [pair for pair in _pairs(runs.metrics) if 0 not in pair]
    settings = LawSettings(_reference(pairs, question.reference), starts=question.starts, bootstrap=question.bootstrap)
    target, target_note = _target(metrics, question.target_samples)
    per_rank = question.parameters_per_rank or _solve_counts(runs.parameters)
    count = partial(_linear_count, *(per_rank or (1.0, 1.0)))
    points = read_points(metrics, PERPLEXITY_OBJECTIVE)
    laws = laws_from(points, _times(_of_power_laws(runs, points), settings), settings)
    choosing = Choosing(
        target, count, settings.reference, question.ranks_me, question.ranks_llm, question.margin, question.rule,
        learning_rates=None if question.learning_rate is None else one_rate(question.learning_rate),
        cost_unit="parameters" if per_rank else "ranks",
    )  # fmt: skip
    notes = tuple(note for note in (target_note, None if per_rank else COST_IN_RANKS) if note)
    described = replace(laws, notes=(*runs.notes, *notes), D_target=target)
    return ImportedLaws(described, choose_from(laws, points, choosing), notes)


def _of_power_laws(runs: ImportedRuns, points: Points) -> ImportedRuns:
    """The runs that law C reads: adapters in both modules, and of several learning rates the one nearest the best."""
    read = frozenset(points.table["run_id"])
    kept = (table[table["run_id"].isin(read)] for table in (runs.metrics, runs.times))
    return replace(runs, metrics=next(kept), times=next(kept))


def _times(runs: ImportedRuns, settings: LawSettings) -> Times:
    if runs.times.empty:
        return times_from_curves(runs.metrics, settings, _levels(runs.metrics, settings))
    return _given(runs.times, settings)


def _levels(metrics: pd.DataFrame, settings: LawSettings) -> LossLevels | None:
    try:
        return freeze_levels(metrics, signal=settings.signal, reference=settings.reference)
    except NoConvergenceTimes:  # reading the times will fail alike, and say why
        return None


def _given(times: pd.DataFrame, settings: LawSettings) -> Times:
    try:
        return Times(given_times(times, settings.reference), None, "given", "given")
    except NoConvergenceTimes as error:
        return Times(pd.DataFrame({"module": []}), str(error), "given", "given")


def _pairs(metrics: pd.DataFrame) -> list[Pair]:
    rows = metrics[["r_me", "r_llm"]].drop_duplicates().itertuples(index=False)
    return sorted((int(r_me), int(r_llm)) for r_me, r_llm in rows)


def _reference(pairs: list[Pair], asked: Pair | None) -> Pair:
    """The pair asked for, else the lower middle of the ranks, or the measured pair next to it."""
    if asked is not None:
        if asked not in pairs:
            raise ValueError(f"--reference {asked}: no run has this pair; the runs have {pairs}")
        return asked
    middle = reference_pair(pairs)
    return min(pairs, key=lambda pair: sum(abs(math.log(a / b)) for a, b in zip(pair, middle, strict=True)))


def _target(metrics: pd.DataFrame, asked: int | None) -> tuple[int, str | None]:
    if asked is not None:
        return asked, None
    largest = int(metrics["unique_samples"].max())
    return largest, f"the pair is chosen for the largest size in the runs, {largest} samples: --target sets another"


def _solve_counts(counted: Mapping[Pair, int]) -> tuple[float, float] | None:
    """Parameters per unit of each rank, None where the recorded counts do not tell."""
    if len(counted) < 2:
        return None
    pairs, counts = np.array(list(counted), dtype=np.float64), np.array(list(counted.values()), dtype=np.float64)
    per_rank, _, rank, _ = np.linalg.lstsq(pairs, counts, rcond=None)
    fits = rank == 2 and (per_rank > 0).all() and np.allclose(pairs @ per_rank, counts, rtol=COUNT_TOLERANCE)
    return (float(per_rank[0]), float(per_rank[1])) if fits else None


def _linear_count(per_me: float, per_llm: float, pair: Pair) -> int:
    return round(per_me * pair[0] + per_llm * pair[1])
