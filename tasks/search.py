"""Choose the rank pair from the fitted laws."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from prefect import task
from prefect.cache_policies import NO_CACHE

from mars_core.fitting import LawFit
from mars_core.models.lora import RankPair, trainable_parameters
from mars_core.search import Choice, choose_pair
from tasks.calibrate import CalibrationPlan, collect_metrics
from tasks.config import StudyConfig
from tasks.fit import metrics_as_points, read_laws, target_size
from tasks.resources import base_model
from tasks.store import Revision, read_json, write_json

LAW_NAMES = {"performance": "law_p", "me": "law_c_me", "llm": "law_c_llm"}


def search_inputs(config: StudyConfig) -> dict[str, Any]:
    """Settings that decide the choice, beside the laws."""
    return {
        "search": config.search.model_dump(mode="json"),
        "ranks": config.available_ranks,
        "target_size": target_size(config),
    }


@task(name="choose-ranks", cache_policy=NO_CACHE, persist_result=False)
def choose_ranks(config: StudyConfig, revision: Revision, plan: CalibrationPlan) -> str:
    """Apply the balance condition and law P, and store the choice with its reasons; returns its path."""
    base = base_model(config.model, config.device, config.recipe.dtype)
    laws = read_laws(revision)
    ranks = config.available_ranks
    metrics, _ = collect_metrics(revision, plan)
    choice = choose_pair(
        _fit(laws["performance"]),
        _fit(laws["convergence"]["me"]),
        _fit(laws["convergence"]["llm"]),
        ranks_me=ranks,
        ranks_llm=ranks,
        D_target=target_size(config),
        trainable_parameters=lambda pair: trainable_parameters(base.partition, RankPair(*pair)),
        observed=_mean_over_seeds(metrics_as_points(metrics)),
        reference=(laws["reference"][0], laws["reference"][1]),
        margin=config.search.margin,
        rule=config.search.law,
        missing={LAW_NAMES[name]: cause for name, cause in laws["causes"].items() if cause},
    )
    write_json(choice_path(revision), choice.to_json())
    return str(choice_path(revision))


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
