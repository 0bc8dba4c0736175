"""Fit law P to the checkpoint metrics and law C to the convergence times of both modules."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from prefect import task
from prefect.cache_policies import NO_CACHE

from mars_core.convergence import (
    LossLevels,
    NoConvergenceTimes,
    convergence_times,
    freeze_levels,
    with_separability,
)
from mars_core.fitting import choose_form, fit_law
from mars_core.search.choice import json_safe
from tasks.calibrate import CalibrationPlan, collect_metrics
from tasks.config import FitConfig, StudyConfig
from tasks.data import usable_samples
from tasks.retrying import IO_RETRIES
from tasks.store import Revision, read_json, write_json

MODULES = ("me", "llm")
# Seeds of their own: with one seed, the n-th draw of both law C fits would take the same runs by position.
BOOTSTRAP_SEEDS = {"performance": 0, "me": 1, "llm": 2}


def fit_inputs(config: StudyConfig, plan: CalibrationPlan) -> dict[str, Any]:
    """Settings that decide the fitted laws, beside the metrics."""
    reference = config.calibration.reference_rank
    return {
        "fit": config.fit.model_dump(mode="json"),
        "reference": reference,
        "law": config.search.law,
        "plan": plan.inputs_hash,
    }


@task(name="fit-laws", cache_policy=NO_CACHE, persist_result=False, **IO_RETRIES)
def fit_laws(config: StudyConfig, revision: Revision, plan: CalibrationPlan) -> str:
    """Fit both laws and store coefficients, intervals and diagnostics; returns the path of laws.json."""
    metrics, notes = collect_metrics(revision, plan)
    laws = laws_from(metrics, config, frozen_levels(config, revision, plan, metrics))
    write_json(laws_path(revision), json_safe(laws | {"notes": [*notes, laws["form"]["reason"]]}))
    return str(laws_path(revision))


def laws_from(metrics: pd.DataFrame, config: StudyConfig, levels: LossLevels | None) -> dict[str, Any]:
    """Fit law P to checkpoint metrics and law C to the convergence times of both modules, as JSON values.

    levels: the revision's frozen loss levels, None where its first runs allowed none.
    """
    reference = (config.calibration.reference_rank,) * 2
    times, cause = _times(metrics, config.fit, reference, levels)
    points = metrics_as_points(metrics)
    form = _form(points, config)
    performance, causes = _fit_or_cause({"performance": points}, form["law"], config.fit)
    modules = {module: cause or times[times["module"] == module] for module in MODULES}
    convergence, no_convergence = _fit_or_cause(modules, "convergence", config.fit)
    return {
        "performance": performance["performance"],
        "form": form,
        "convergence": convergence,
        "causes": causes | no_convergence,
        "convergence_times": times.to_dict("records"),
        "reference": list(reference),
        "signal": config.fit.signal,
        "level": config.fit.level,
    }


def metrics_as_points(metrics: pd.DataFrame) -> pd.DataFrame:
    """Checkpoint metrics as the points of law P: r_me, r_llm, D, loss, and the run they come from."""
    return metrics.rename(columns={"unique_samples": "D", "val_loss": "loss"})[
        ["r_me", "r_llm", "D", "loss", "run_id", "seed"]
    ]


def _form(points: pd.DataFrame, config: StudyConfig) -> dict[str, Any]:
    """Which form law P takes: Eq. 1 under `law: paper`, else the one that wins on held-out sizes and ranks."""
    if config.search.law == "paper":
        return {"law": "performance", "reason": "law: paper keeps Eq. 1"}
    try:
        return choose_form(points, delta=config.fit.delta).to_json()
    except ValueError as error:  # too few points to hold any out
        return {"law": "performance", "reason": f"Eq. 1 by default: {error}"}


def frozen_levels(
    config: StudyConfig, revision: Revision, plan: CalibrationPlan, metrics: pd.DataFrame
) -> LossLevels | None:
    """Loss levels of the revision's first fit: pairs added or diverged later must move no other pair's time."""
    path = levels_path(revision)
    reference = (config.calibration.reference_rank,) * 2
    design: dict[str, Any] = {"signal": config.fit.signal, "horizon": plan.horizon, "reference": list(reference)}
    design["steps"] = list(plan.checkpoint_steps)
    if path.is_file() and (stored := read_json(path))["design"] == design:
        return LossLevels.from_json(stored["levels"])
    try:
        levels = freeze_levels(metrics, signal=config.fit.signal, reference=reference)
    except NoConvergenceTimes:  # reading the times will fail alike, and say why
        return None
    write_json(path, {"design": design, "levels": levels.to_json()})
    return levels


def _times(
    metrics: pd.DataFrame, fit: FitConfig, reference: tuple[int, int], levels: LossLevels | None
) -> tuple[pd.DataFrame, str | None]:
    try:
        times = convergence_times(metrics, signal=fit.signal, level=fit.level, reference=reference, levels=levels)
    except NoConvergenceTimes as error:
        return pd.DataFrame({"module": []}), str(error)
    return times, None


def _fit_or_cause(
    tables: Mapping[str, pd.DataFrame | str], law: str, settings: FitConfig
) -> tuple[dict[str, Any], dict[str, str | None]]:
    """Fit a law to each table; a table that is a sentence, or cannot be fitted, becomes a cause."""
    fits: dict[str, Any] = {}
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
            fits[name] = (with_separability(fit, points) if law == "convergence" else fit).to_json()
        except ValueError as error:  # too few or unusable points: the search falls back and says why
            causes[name] = str(error)
    return fits, causes


def levels_path(revision: Revision) -> Path:
    """Where the frozen loss levels lie, if the first runs allowed any."""
    return revision.path("levels.json")


def laws_path(revision: Revision) -> Path:
    """Where the fitted laws lie."""
    return revision.path("laws.json")


def read_laws(revision: Revision) -> dict[str, Any]:
    """The stored laws as JSON values."""
    laws: dict[str, Any] = read_json(laws_path(revision))
    return laws


def target_size(config: StudyConfig) -> int:
    """Dataset size to choose ranks for: as set, else the size of the training set."""
    return config.search.target_samples or len(usable_samples(config, "train"))
