"""Choose the rank pair from the fitted laws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from prefect import task
from prefect.cache_policies import NO_CACHE

from mars_core.convergence import LossLevels
from mars_core.fitting import LawFit
from mars_core.models.lora import RankPair, trainable_parameters
from mars_core.search import (
    Choice,
    choose_pair,
    stability_over_draws,
    stability_over_seeds,
)
from tasks.calibrate import CalibrationPlan, collect_metrics
from tasks.config import StudyConfig
from tasks.fit import frozen_levels, laws_from, metrics_as_points, read_laws, target_size
from tasks.resources import base_model
from tasks.retrying import IO_RETRIES
from tasks.store import Revision, read_json, write_json

STABILITY_DRAWS = 100
LAW_NAMES = {"performance": "law_p", "me": "law_c_me", "llm": "law_c_llm"}


def search_inputs(config: StudyConfig) -> dict[str, Any]:
    """Settings that decide the choice, beside the laws."""
    return {
        "search": config.search.model_dump(mode="json"),
        "ranks": config.available_ranks,
        "target_size": target_size(config),
    }


@task(name="choose-ranks", cache_policy=NO_CACHE, persist_result=False, **IO_RETRIES)
def choose_ranks(config: StudyConfig, revision: Revision, plan: CalibrationPlan) -> str:
    """Apply the balance condition and law P, and store the choice with its reasons; returns its path."""
    laws = read_laws(revision)
    metrics, _ = collect_metrics(revision, plan)
    choose = partial(_choose, config, laws["reference"], _missing(laws))
    fits = _fits(laws)
    if metrics["seed"].nunique() > 1:
        levels = frozen_levels(config, revision, plan, metrics)
        stability = stability_over_seeds(metrics, partial(_refit_and_choose, config, levels)).to_json()
    elif any(fits):
        observed = metrics_as_points(metrics)
        draws = stability_over_draws(*fits, lambda *drawn: choose(observed, *drawn), n_draws=STABILITY_DRAWS)
        stability = draws.to_json()
    else:
        stability = None
    choice = choose(metrics_as_points(metrics), *fits, evidence={"stability": stability})
    write_json(choice_path(revision), choice.to_json())
    return str(choice_path(revision))


def _refit_and_choose(config: StudyConfig, levels: LossLevels | None, metrics: pd.DataFrame) -> Choice:
    laws = laws_from(metrics, config, levels)
    return _choose(config, laws["reference"], _missing(laws), metrics_as_points(metrics), *_fits(laws))


def _choose(
    config: StudyConfig,
    reference: Sequence[int],
    missing: Mapping[str, str],
    points: pd.DataFrame,
    law_p: LawFit | None,
    law_c_me: LawFit | None,
    law_c_llm: LawFit | None,
    evidence: Mapping[str, Any] | None = None,
) -> Choice:
    partition = base_model(config.model, config.device, config.recipe.dtype).partition
    return choose_pair(
        law_p,
        law_c_me,
        law_c_llm,
        ranks_me=config.available_ranks,
        ranks_llm=config.available_ranks,
        D_target=target_size(config),
        trainable_parameters=lambda pair: trainable_parameters(partition, RankPair(*pair)),
        observed=_mean_over_seeds(points),
        reference=(reference[0], reference[1]),
        margin=config.search.margin,
        rule=config.search.law,
        constraints=config.search.as_constraints(),
        missing=missing,
        evidence=evidence,
    )


def _fits(laws: Mapping[str, Any]) -> tuple[LawFit | None, LawFit | None, LawFit | None]:
    convergence = laws["convergence"]
    return _fit(laws["performance"]), _fit(convergence["me"]), _fit(convergence["llm"])


def _missing(laws: Mapping[str, Any]) -> dict[str, str]:
    return {LAW_NAMES[name]: cause for name, cause in laws["causes"].items() if cause}


def _fit(stored: Any) -> LawFit | None:
    return LawFit.from_json(stored) if stored else None


def _mean_over_seeds(points: pd.DataFrame) -> pd.DataFrame:
    return points.groupby(["r_me", "r_llm", "D"], as_index=False)["loss"].mean()


def choice_path(revision: Revision) -> Path:
    """Where the choice lies."""
    return revision.path("choice.json")


def read_choice(revision: Revision) -> Choice:
    """The stored choice."""
    return Choice.from_json(read_json(choice_path(revision)))


def chosen_pair(revision: Revision) -> RankPair:
    """The chosen rank pair."""
    return RankPair(*read_choice(revision).pair)
