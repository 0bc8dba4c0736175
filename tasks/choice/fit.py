"""Fit law P to the checkpoint metrics and law C to the convergence times of both modules."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from prefect import task
from prefect.cache_policies import NO_CACHE

from mars_core import __version__
from mars_core.convergence import LossLevels, NoConvergenceTimes, freeze_levels
from mars_core.metrics.effective_size import effective_samples
from mars_core.metrics.identity import content_hash
from mars_core.search import both_laws
from mars_core.search.both_laws import LawSettings, times_from_curves
from mars_core.search.fitted_laws import FittedLaws
from mars_core.search.objective import objective_named
from mars_core.search.points import Points, read_points
from tasks.calibration.diverged import collect_metrics, divergence
from tasks.calibration.stage import CALIBRATE
from tasks.inputs.opened import Inputs
from tasks.running.progress import show_message
from tasks.running.retrying import IO_RETRIES
from tasks.settings.study import StudyConfig
from tasks.storage.files import read_json, write_json
from tasks.storage.folder import Revision
from tasks.study.opened import Study
from tasks.study.stage import Stage


def _inputs(study: Study, metrics_hash: str) -> str:
    """What decides the fitted laws: metrics, settings, and the code, whose mistakes a new version mends."""
    settings = {
        "fit": study.config.fit.model_dump(mode="json"),
        "reference": _reference(study.config),
        "plan": study.plan.inputs_hash,
        "objective": study.config.search.objective,
        "code_version": __version__,
    }
    return content_hash([metrics_hash, settings])


def _reference(config: StudyConfig) -> int | list[int]:
    # One number where both ranks are equal, as in the hashes of studies made before they could differ.
    me, llm = config.calibration.reference
    return me if me == llm else [me, llm]


@task(name="fit-laws", cache_policy=NO_CACHE, persist_result=False, **IO_RETRIES)
def fit_laws(study: Study) -> str:
    """Fit both laws and store coefficients, intervals and diagnostics; returns the path of laws.json."""
    found = divergence(study)
    metrics = collect_metrics(study, found)
    points = read_points(metrics, objective_named(study.config.search.objective))
    curves = law_c_curves(metrics, points)
    laws = laws_from(points, curves, study.config, frozen_levels(study, curves, points))
    for missing in laws.missing:
        show_message(f"fit: {missing}")
    write_json(laws_path(study.revision), replace(laws, notes=(*found.notes, *laws.objective_notes)).to_json())
    return str(laws_path(study.revision))


def laws_from(points: Points, curves: pd.DataFrame, config: StudyConfig, levels: LossLevels | None) -> FittedLaws:
    """Fit law P to the objective and law C to the convergence times of both modules.

    The times come from the validation loss whatever the objective is.

    curves: metrics that the times are read off. levels: the revision's frozen loss levels, None where its first runs
    allowed none.
    """
    settings = law_settings(config)
    times = times_from_curves(curves, settings, levels)
    return both_laws.laws_from(points, times, settings, objective_named(config.search.objective))


def law_c_curves(metrics: pd.DataFrame, points: Points) -> pd.DataFrame:
    """Metrics that convergence times are read off: pairs of positive ranks, each at the rate nearest its best one."""
    positive = metrics[(metrics["r_me"] > 0) & (metrics["r_llm"] > 0)]
    return positive if points.rates is None else positive[positive["run_id"].isin(points.nearest)]


def law_settings(config: StudyConfig) -> LawSettings:
    """How a study's laws are fitted, as mars_core's record."""
    return LawSettings(config.calibration.reference, **config.fit.model_dump())


def frozen_levels(study: Study, metrics: pd.DataFrame, points: Points) -> LossLevels | None:
    """Loss levels of the revision's first fit: pairs added or diverged later must move no other pair's time."""
    path = levels_path(study.revision)
    reference = study.config.calibration.reference
    longest, *others = study.plan.schedules
    design: dict[str, Any] = {
        "signal": study.config.fit.signal,
        "horizon": longest.horizon,
        "reference": list(reference),
    }
    design["steps"] = list(longest.checkpoint_steps)
    if others:
        design["shorter"] = [list(one.checkpoint_steps) for one in others]
    if points.rates is not None:  # other rates reach other losses
        design["log_rates"] = [[float(rate) for rate in axis] for axis in points.rates.rates]
    if path.is_file() and (stored := read_json(path))["design"] == design:
        return LossLevels.from_json(stored["levels"])
    try:
        levels = freeze_levels(metrics, signal=study.config.fit.signal, reference=reference)
    except NoConvergenceTimes:  # reading the times will fail alike, and say why
        return None
    write_json(path, {"design": design, "levels": levels.to_json()})
    return levels


def levels_path(revision: Revision) -> Path:
    """Where the frozen loss levels lie, if the first runs allowed any."""
    return revision.path("levels.json")


def laws_path(revision: Revision) -> Path:
    """Where the fitted laws lie."""
    return revision.path("laws.json")


FIT = Stage(
    "fit",
    reads=lambda _: (CALIBRATE,),
    inputs=_inputs,
    outputs=lambda study: (laws_path(study.revision), levels_path(study.revision)),
)


def read_laws(revision: Revision) -> FittedLaws:
    """The stored laws."""
    return FittedLaws.from_json(read_json(laws_path(revision)))


def target_size(inputs: Inputs) -> int:
    """Dataset size to choose ranks for: as set, else what the final run's data are worth in unique samples."""
    if inputs.config.search.target_samples is not None:
        return inputs.config.search.target_samples
    return max(1, round(effective_samples(len(inputs.usable("train")), inputs.config.final.epochs)))


def target_note(inputs: Inputs) -> str:
    """How the size came about that ranks are chosen for."""
    size, epochs = target_size(inputs), inputs.config.final.epochs
    if inputs.config.search.target_samples is not None:
        return f"ranks are chosen for {size:,} samples, as search.target_samples says"
    samples = len(inputs.usable("train"))
    if epochs > 1:
        return (
            f"ranks are chosen for {size:,} samples: {epochs:g} epochs over {samples:,} training samples are worth "
            "that many unique ones, since a repeated sample teaches less than a new one (arXiv 2305.16264)"
        )
    share = "all" if epochs == 1 else f"{epochs:.0%} of"
    return f"ranks are chosen for {size:,} samples: the final run sees {share} {samples:,} training samples once"
