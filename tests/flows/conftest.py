"""One finished small study, run for real: real pictures, the shipped backbone, Prefect's own server, MLflow."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from peft.tuners.lora import LoraLayer
from torch import nn

from mars_core.demo import demo_backbone_path
from mars_core.models.loading import Base
from tasks.calibration import packs
from tasks.inputs import base_model
from tasks.inputs.opened import Inputs
from tasks.settings.calibration import CalibrationConfig, FitConfig
from tasks.settings.data import DataConfig
from tasks.settings.recipe import RecipeConfig
from tasks.settings.study import StudyConfig, read_study, write_study
from tests.conftest import made_once
from tests.report_figures import figures_drawn


@pytest.fixture(scope="session", autouse=True)
def services(quick_services: None) -> None:
    """Most tests here run flows."""


@pytest.fixture(scope="session", autouse=True)
def costs_measured_once() -> Iterator[None]:
    """Every calibration measures a few steps of as many runs as go at once: one measurement speaks for all ranks."""
    measure, known = packs.measure_cost, {}

    def measured(model, partition, pairs, *, recipe, at_once, **changes):
        key = (recipe, at_once, changes["validation_samples"])
        if key not in known:
            known[key] = measure(model, partition, pairs, recipe=recipe, at_once=at_once, **changes)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packs, "measure_cost", measured)
        yield


@pytest.fixture(scope="session", autouse=True)
def backbone_loaded_once() -> Iterator[None]:
    """Commands find the demo's backbone in memory, and what was found out about it, as long as none has changed it."""
    load, drop = base_model.load_base, Inputs.drop_models
    known: dict[str, Base] = {}

    def loaded(model: str, **how: Any) -> Base:
        key = repr(sorted(how.items(), key=lambda item: item[0]))
        if model != str(demo_backbone_path()):
            return load(model, **how)
        if key not in known or not is_frozen_and_bare(known[key].model):
            known[key] = load(model, **how)
        return known[key]

    def dropped(self: Inputs) -> None:
        known.clear()
        drop(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(base_model, "load_base", loaded)
        patch.setattr(Inputs, "drop_models", dropped)
        yield


def is_frozen_and_bare(model: nn.Module) -> bool:
    return not any(parameter.requires_grad for parameter in model.parameters()) and not any(
        isinstance(module, LoraLayer) for module in model.modules()
    )


def write_small_study(folder: Path, data: Path) -> StudyConfig:
    """Four pairs of eight steps each, fits of few starts and draws; everything else as a user would have it."""
    config = StudyConfig(
        study=str(folder / "study"),
        model=str(demo_backbone_path()),
        data=DataConfig(
            train=str(data / "train.json"),
            validation=str(data / "validation.json"),
            test=str(data / "test.json"),
            images=str(data / "images"),
        ),
        recipe=RecipeConfig(learning_rate=1e-3, max_tokens=512),
        calibration=CalibrationConfig(ranks=(2, 4), samples=64, smallest_size=8, parallel=2),
        fit=FitConfig(starts=8, bootstrap=20),
        device="cpu",
    )
    write_study(config, folder / "study.yaml")
    return config


@pytest.fixture
def study(tmp_path: Path, demo_data: Path) -> Path:
    """The file of a study that has not run, with a copy of the data that a test may spoil."""
    shutil.copytree(demo_data, tmp_path / "data")
    write_small_study(tmp_path, tmp_path / "data")
    return tmp_path / "study.yaml"


@pytest.fixture(scope="session")
def finished(demo_data: Path) -> StudyConfig:
    """A study that ran to its report. Tests that change it work on `copied`."""
    from flows.study import study_flow

    made = made_once(
        "finished", lambda folder: study_flow(write_small_study(folder, demo_data), command="mars run study.yaml")
    )
    return read_study(made / "study.yaml")


@pytest.fixture
def one_figure() -> Iterator[None]:
    """A report that is written has the heatmap alone."""
    with figures_drawn("heatmap"):
        yield


@pytest.fixture
def copied(finished: StudyConfig, tmp_path: Path, one_figure: None) -> StudyConfig:
    """A copy of the finished study in a folder of its own; a report that it makes anew has one figure."""
    shutil.copytree(finished.study, tmp_path / "study")
    alone = finished.calibration.model_copy(update={"parallel": 1})
    config = finished.model_copy(update={"study": str(tmp_path / "study"), "calibration": alone})
    write_study(config, tmp_path / "study.yaml")
    return config
