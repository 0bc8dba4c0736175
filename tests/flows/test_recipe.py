"""A study whose recipe differs from the default in all it can: every stage adapts, counts and hands over the same."""

from __future__ import annotations

import json
import math
import re

import pytest
import yaml
from safetensors import safe_open

from flows.calibrate import calibrate_flow
from flows.stages import finetune_flow
from mars_core.models.lora import layer_ranks, trainable_parameters
from mars_core.ranks import RankPair
from tasks.export.card import card_path
from tasks.export.pair import export_config
from tasks.final.arm import Arm
from tasks.final.pair import final_folder
from tasks.final.record import read_final
from tasks.inputs.inspection import inspect_model
from tasks.inputs.opened import Inputs
from tasks.settings.calibration import CalibrationConfig
from tasks.settings.final import FinalConfig
from tasks.settings.recipe import ModuleAlphas, ModuleRates, RecipeConfig, TargetPatterns
from tasks.settings.study import read_study, write_study
from tasks.study.revision import current_revision

PAIR = RankPair(2, 4)
RECIPE = RecipeConfig(
    learning_rate=1e-3,
    max_tokens=512,
    module_learning_rates=ModuleRates(llm=2e-3),
    module_lora_alpha=ModuleAlphas(me="8", projector="sqrt"),
    optimizer="adamw",
    weight_decay=0.1,
    schedule="warmup_stable_decay",
    final_share=0.1,
    targets=TargetPatterns(me=r"fc1$", llm="self_attn"),
    projector_rank=3,
    lora_plus_ratio=4,
)
ALPHAS = {"me": 8, "projector": 8 * math.sqrt(3), "llm": 8}


@pytest.fixture
def config(study):
    few_steps = CalibrationConfig(ranks=(2, 4), samples=16, smallest_size=8), FinalConfig(epochs=0.25)
    config = read_study(study)
    config = config.model_copy(update={"recipe": RECIPE, "calibration": few_steps[0], "final": few_steps[1]})
    write_study(config, study)
    return read_study(study)


def test_every_stage_keeps_to_the_recipe(config, study, tmp_path):
    calibrate_flow(config)
    finetune_flow(config, *PAIR, "asked for")
    revision, partition = current_revision(config), Inputs(config).partition
    groups = {layer.name: group for group in ALPHAS for layer in partition.group(group)}
    ranks, count = layer_ranks(partition, PAIR), trainable_parameters(partition, PAIR)
    assert {group: len(partition.group(group)) for group in ALPHAS} == {"me": 3, "projector": 2, "llm": 12}

    assert read_final(revision, Arm(PAIR)).trainable_parameters == count
    adapter = final_folder(revision, Arm(PAIR)) / "adapter"
    stored = json.loads((adapter / "adapter_config.json").read_text())
    assert stored["rank_pattern"] == {re.escape(name): rank for name, rank in ranks.items()}
    assert stored["alpha_pattern"] == pytest.approx({re.escape(name): ALPHAS[groups[name]] for name in ranks})
    with safe_open(str(adapter / "adapter_model.safetensors"), framework="pt") as file:
        assert sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys()) == count  # noqa: SIM118
    card = card_path(revision, Arm(PAIR)).read_text()
    assert "rank **3** in the projector and rank **4** in the language model" in card
    assert "| module learning rates | llm 0.002 |" in card

    inspected = inspect_model(str(study), [2, 4]).to_json()
    assert {group: inspected["groups"][group]["layers"] for group in ALPHAS} == {"me": 3, "projector": 2, "llm": 12}
    assert "model.language_model.layers.0.mlp.up_proj" in inspected["excluded"]
    assert {"r_me": 2, "r_llm": 4, "trainable_parameters": count}.items() <= inspected["pairs"][1].items()

    export_config(config, tuple(PAIR), "axolotl", tmp_path / "axolotl.yaml")
    options = yaml.safe_load((tmp_path / "axolotl.yaml").read_text())
    assert options["lora_rank_pattern"] == stored["rank_pattern"]
    assert options["lora_alpha_pattern"] == pytest.approx(stored["alpha_pattern"])
    start = json.loads((tmp_path / "axolotl-files" / "start" / "adapter_config.json").read_text())
    assert start["alpha_pattern"] == pytest.approx(stored["alpha_pattern"])


def test_a_pattern_that_matches_nothing_is_found_before_anything_is_trained(config):
    nowhere = config.recipe.model_copy(update={"targets": TargetPatterns(llm="q_project")})
    with pytest.raises(
        ValueError, match=r"recipe\.targets\.llm: 'q_project' matches none of its 21 linear layers, such as"
    ):
        calibrate_flow(config.model_copy(update={"recipe": nowhere}))
