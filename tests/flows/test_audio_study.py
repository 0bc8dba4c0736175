"""A model that hears, from recorded words to the report."""

from __future__ import annotations

import pytest
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForMultimodalLM

from tasks.settings.calibration import CalibrationConfig, FitConfig
from tasks.settings.data import DataConfig
from tasks.settings.recipe import RecipeConfig
from tasks.settings.study import StudyConfig
from tests.mars_core.small_hearing_model import write_hearing_model, write_spoken_rows

SPEEDS = {
    "train": range(6500, 9500, 350),
    "validation": range(6600, 9500, 700),
    "test": range(6700, 9500, 700),
}


@pytest.mark.slow
def test_a_study_of_sounds_ends_with_a_report_and_an_adapter_of_both_modules(tmp_path, one_figure):
    from flows.study import study_flow

    model = write_hearing_model(tmp_path / "model")
    files = {split: str(write_spoken_rows(tmp_path / "data", split, speeds)) for split, speeds in SPEEDS.items()}
    config = StudyConfig(
        study=str(tmp_path / "study"),
        model=str(model),
        data=DataConfig(**files),
        recipe=RecipeConfig(learning_rate=1e-2, max_tokens=512),
        calibration=CalibrationConfig(ranks=(2, 4), samples=64, smallest_size=8, parallel=1),
        fit=FitConfig(bootstrap=20),
        device="cpu",
    )
    study_flow(config, command="mars run study.yaml")
    (report,) = (tmp_path / "study").rglob("report.html")
    assert "audio encoder" in report.read_text()
    assert "vision encoder" not in report.read_text().lower()
    adapter = next((tmp_path / "study").rglob("adapter_model.safetensors")).parent
    trained = load_file(adapter / "adapter_model.safetensors")
    for module in ("audio_tower", "language_model"):
        # B starts at zero, so a module that learned has some that are not.
        assert any(weight.any() for name, weight in trained.items() if module in name and "lora_B" in name)
    PeftModel.from_pretrained(AutoModelForMultimodalLM.from_pretrained(model), str(adapter))
    assert "AutoModelForMultimodalLM" in (adapter / "README.md").read_text()
