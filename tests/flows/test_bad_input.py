"""A caller's mistake: one clear message, exit code 2, nothing expensive started, nothing left behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoConfig, LlavaOnevisionForConditionalGeneration
from typer.testing import CliRunner

from flows.cli.main import app
from mars_core.demo import demo_backbone_path
from mars_core.models.processor import load_processor
from tasks.settings.study import read_study


def change_row(study: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Apply `change` to the third training row."""
    path = study.parent / "data" / "train.json"
    rows = json.loads(path.read_text())
    change(rows[2])
    path.write_text(json.dumps(rows))


def change_study(study: Path, **sections: Any) -> None:
    values = yaml.safe_load(study.read_text())
    for name, value in sections.items():
        values[name] = values[name] | value if isinstance(value, dict) else value
    study.write_text(yaml.safe_dump(values))


def refused(study: Path, *command: str) -> str:
    """Run a command that must refuse its input; returns the message as one line."""
    result = CliRunner().invoke(app, [*(command or ("run",)), str(study)])
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert not (study.parent / "study" / "revisions").exists()
    return " ".join(result.output.split())


def first_image(study: Path) -> Path:
    row = json.loads((study.parent / "data" / "train.json").read_text())[2]
    return study.parent / "data" / "images" / row["image"]


def test_missing_image(study):
    image = first_image(study)
    image.unlink()
    message = refused(study)
    assert "missing image" in message
    assert image.name in message
    assert "row 3" in message


def test_unreadable_image(study):
    image = first_image(study)
    image.write_bytes(image.read_bytes()[:60])
    message = refused(study)
    assert "unreadable image" in message
    assert "row 3" in message


def test_image_markers_unequal_to_images(study):
    change_row(study, lambda row: row["conversations"][0].update(value="<image><image> what is it?"))
    assert "2 <image> markers" in refused(study)


@pytest.mark.parametrize("path", ["../../secret.png", "/etc/hostname"])
def test_image_outside_the_image_folder(study, path):
    (study.parent / "secret.png").write_bytes(first_image(study).read_bytes())
    change_row(study, lambda row: row.update(image=path))
    message = refused(study)
    assert "outside the image folder" in message or "is absolute" in message


def test_empty_dataset(study):
    (study.parent / "data" / "train.json").write_text("[]")
    assert "empty" in refused(study)


def test_all_bad_rows_come_in_one_pass(study):
    path = study.parent / "data" / "train.json"
    rows = json.loads(path.read_text())
    rows[1]["image"], rows[4]["image"] = "a.png", "b.png"
    path.write_text(json.dumps(rows))
    message = refused(study, "data", "check")
    assert "a.png" in message
    assert "b.png" in message
    assert "2 problems" in message


def test_dataset_smaller_than_the_smallest_size(study):
    change_study(study, calibration={"smallest_size": 128, "samples": 1024})
    message = refused(study)
    assert "64 usable samples" in message
    assert "smallest calibration size 128" in message


def test_smaller_largest_size_is_capped_and_said(study):
    change_study(study, calibration={"samples": 1024})
    result = CliRunner().invoke(app, ["calibrate", "--dry-run", "--json", str(study)])
    assert result.exit_code == 0, result.output
    plan = json.loads(result.stdout[result.stdout.index("{") :])
    assert plan["steps_per_run"] == 8
    assert plan["notes"] == ["largest size capped by the dataset: 64 instead of 1024 samples"]


def test_model_folder_without_checkpoint(study):
    change_study(study, model=str(study.parent / "data"))
    assert "no config.json" in refused(study)


def test_model_of_an_unknown_type(study):
    folder = study.parent / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    change_study(study, model=str(folder))
    assert "model type 'gpt2' is not known" in refused(study)


@pytest.mark.parametrize(("part", "label"), [("vision_config", "modality encoder"), ("text_config", "LLM")])
def test_module_without_linear_layers(study, part, label):
    backbone, folder = str(demo_backbone_path()), study.parent / "model"
    config = AutoConfig.from_pretrained(backbone)
    getattr(config, part).num_hidden_layers = 0
    if part == "text_config":
        config.text_config.layer_types = []
    torch.manual_seed(0)
    LlavaOnevisionForConditionalGeneration(config).save_pretrained(folder)
    load_processor(backbone).save_pretrained(folder)
    change_study(study, model=str(folder))
    message = refused(study)
    assert label in message
    assert "no linear layers" in message


def test_rank_above_the_layer_width(study):
    change_study(study, calibration={"ranks": [2, 4096]})
    message = refused(study)
    assert "rank 4096" in message
    assert "above the width" in message


def test_available_rank_above_the_layer_width_is_found_before_calibration(study):
    change_study(study, search={"ranks": [2, 4096]})
    assert "above the width" in refused(study)


def test_unknown_field_names_itself(study):
    change_study(study, recipe={"learning_rat": 1.0})
    assert "recipe.learning_rat" in refused(study)


def test_images_shared_by_two_splits(study):
    data = study.parent / "data"
    rows = json.loads((data / "train.json").read_text())
    (data / "test.json").write_text(json.dumps(rows[:8]))
    assert "more than one split" in refused(study)


def test_a_stage_before_its_inputs_names_the_stage_to_run(study):
    """And begins nothing: settings may still change."""
    result = CliRunner().invoke(app, ["fit", str(study)])
    assert result.exit_code == 2
    assert "mars calibrate" in " ".join(result.output.split())
    assert not Path(read_study(study).study, "revisions").exists()
