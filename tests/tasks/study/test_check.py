from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import pytest

from mars_core.demo import demo_backbone_path
from tasks.inputs.opened import Inputs
from tasks.settings.data import DataConfig
from tasks.settings.recipe import RecipeConfig
from tasks.settings.study import StudyConfig
from tasks.study import check

CONTEXT = SimpleNamespace(task=SimpleNamespace(name="check-data"))


@pytest.fixture
def config(demo_data, tmp_path):
    shutil.copytree(demo_data, tmp_path / "data")
    names = {name: str(tmp_path / "data" / f"{name}.json") for name in ("train", "validation", "test")}
    data = DataConfig(images=str(tmp_path / "data" / "images"), **names)
    return StudyConfig(study=str(tmp_path / "study"), model=str(demo_backbone_path()), data=data)


def key(config):
    return check.content_key(CONTEXT, {"inputs": Inputs(config)})


def test_a_check_is_reused_only_for_the_same_data_recipe_and_code(config, tmp_path, monkeypatch):
    before = key(config)
    assert key(config.model_copy(update={"study": str(tmp_path / "elsewhere")})) == before
    assert key(config.model_copy(update={"recipe": RecipeConfig(learning_rate=1e-3)})) != before
    monkeypatch.setattr(check, "__version__", "0.0.0")
    assert key(config) != before
    monkeypatch.undo()
    train = tmp_path / "data" / "train.json"
    train.write_text(json.dumps(json.loads(train.read_text())[1:]))
    assert key(config) != before
