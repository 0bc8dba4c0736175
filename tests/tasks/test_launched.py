"""The final run in several real processes, started as a user's accelerate configuration says."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from mars_core.demo import demo_backbone_path
from mars_core.training.methods.method import trained
from tasks.accelerate_config import acceleration_of
from tasks.baselines import read_baseline
from tasks.config import CalibrationConfig, DataConfig, FinalConfig, RecipeConfig, StudyConfig
from tasks.train import release, train

TWO_ON_THE_CPU = "distributed_type: MULTI_GPU\nuse_cpu: true\nnum_processes: 2\n"
STEPS = 8


@pytest.fixture
def config(tmp_path: Path, demo_data: Path) -> StudyConfig:
    return StudyConfig(
        study=str(tmp_path / "study"),
        model=str(demo_backbone_path()),
        data=DataConfig(
            train=str(demo_data / "train.json"),
            validation=str(demo_data / "validation.json"),
            test=str(demo_data / "test.json"),
            images=str(demo_data / "images"),
        ),
        recipe=RecipeConfig(learning_rate=1e-3, max_tokens=512),
        calibration=CalibrationConfig(ranks=(2, 4), samples=64, smallest_size=8),
        evaluation_batch_size=4,  # 12 samples are 3 batches: two processes do not come out even
        device="cpu",
    )


def accelerated(config: StudyConfig, folder: Path, text: str = TWO_ON_THE_CPU) -> StudyConfig:
    path = folder / "accelerate.yaml"
    path.write_text(text)
    return config.model_copy(update={"final": FinalConfig(accelerate=str(path))})


def run_of(config: StudyConfig, name: str, checkpoints: Path):
    """The run, its log as it was reported, and the trained weights."""
    baseline, log, steps = read_baseline(name), [], []
    wrapped, run = train(
        config, baseline, steps=STEPS, checkpoints=checkpoints, on_step=steps.append, on_log=log.append
    )
    weights = {key: value.detach().clone() for key, value in trained(wrapped).items()}
    release(baseline, wrapped)
    return run, weights, log, steps


def curve(run, key: str) -> list[float]:
    return [entry[key] for entry in run.history if key in entry]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pair-2-4", "full-rank", "adalora-4", "learning-rates-1e-4-1e-3"])
def test_two_processes_train_what_one_does(config, tmp_path, name):
    one, weights, _, _ = run_of(config, name, tmp_path / "one")
    two, others, log, steps = run_of(accelerated(config, tmp_path), name, tmp_path / "two")
    assert (one.processes, two.processes) == (1, 2)
    assert (two.steps, two.best_step) == (one.steps, one.best_step)
    # fp32: halves of a batch are summed apart; eight steps of Adam at 1e-3 enlarge what rounding leaves.
    for key, tolerance in (("loss", 1e-4), ("eval_loss", 1e-4), ("learning_rate", 1e-12)):
        assert curve(two, key) == pytest.approx(curve(one, key), rel=tolerance)
    assert curve(two, "eval_accuracy") == curve(one, "eval_accuracy")
    assert weights.keys() == others.keys()
    moved = {key: float((weights[key]).abs().max()) for key in weights}
    for key in weights:
        torch.testing.assert_close(others[key], weights[key], rtol=0, atol=1e-3 * max(moved[key], 1e-3))
    assert steps == list(range(1, STEPS + 1))
    assert [dict(entry) for entry in log] == [dict(entry) for entry in two.history]
    assert two.samples_per_second > 0
    assert two.tokens_per_second > two.samples_per_second


SHARDED = """\
distributed_type: FSDP
num_processes: 2
fsdp_config:
  fsdp_version: 2
  fsdp_auto_wrap_policy: TRANSFORMER_BASED_WRAP
  fsdp_transformer_layer_cls_to_wrap: Qwen2DecoderLayer,SiglipEncoderLayer
  fsdp_reshard_after_forward: true
  fsdp_state_dict_type: SHARDED_STATE_DICT
  fsdp_cpu_ram_efficient_loading: false
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pair-2-4", "full-rank"])
def test_two_processes_that_share_one_model_train_what_one_does(config, tmp_path, name, monkeypatch):
    one, weights, _, _ = run_of(config, name, tmp_path / "one")
    monkeypatch.setattr("tasks.train.MODULE", "tests.tasks.fsdp_on_cpu")
    two, others, _, _ = run_of(accelerated(config, tmp_path, SHARDED), name, tmp_path / "two")
    assert two.processes == 2
    for key, tolerance in (("loss", 1e-4), ("eval_loss", 1e-4)):
        assert curve(two, key) == pytest.approx(curve(one, key), rel=tolerance)
    assert weights.keys() == others.keys()
