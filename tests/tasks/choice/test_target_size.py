"""The size that ranks are chosen for: what the study says, else what the final run will see."""

from __future__ import annotations

from pathlib import Path

import pytest

from mars_core.demo import demo_backbone_path
from tasks.choice.fit import target_note, target_size
from tasks.inputs.opened import Inputs
from tasks.settings.data import DataConfig
from tasks.settings.final import FinalConfig
from tasks.settings.recipe import RecipeConfig
from tasks.settings.search import SearchConfig
from tasks.settings.study import StudyConfig


def study(demo_data: Path, epochs: float, target: int | None = None) -> StudyConfig:
    """A study on 64 training samples."""
    splits = {name: str(demo_data / f"{name}.json") for name in ("train", "validation", "test")}
    return StudyConfig(
        study=str(demo_data / "study"),
        model=str(demo_backbone_path()),
        data=DataConfig(**splits, images=str(demo_data / "images")),
        recipe=RecipeConfig(learning_rate=1e-3, max_tokens=512),
        search=SearchConfig(target_samples=target),
        final=FinalConfig(epochs=epochs),
        device="cpu",
    )


@pytest.mark.parametrize(
    ("epochs", "size", "words"),
    [
        (0.5, 32, "the final run sees 50% of 64 training samples once"),
        (1.0, 64, "the final run sees all 64 training samples once"),
        (3.0, 184, "3 epochs over 64 training samples"),  # 64 * 2.87557
        (12.0, 567, "12 epochs over 64 training samples"),  # 64 * 8.86106
    ],
)
def test_the_target_is_what_the_final_run_s_data_are_worth(demo_data, epochs, size, words):
    config = study(demo_data, epochs)
    assert target_size(Inputs(config)) == size
    assert f"ranks are chosen for {size:,} samples: {words}" in target_note(Inputs(config))


def test_a_target_of_the_study_stands(demo_data):
    config = study(demo_data, 12.0, target=5000)
    assert target_size(Inputs(config)) == 5000
    assert target_note(Inputs(config)) == "ranks are chosen for 5,000 samples, as search.target_samples says"
