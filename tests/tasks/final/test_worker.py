"""The final run in several real processes, started as a user's accelerate configuration says."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from mars_core.demo import demo_backbone_path
from mars_core.training.finetune import FinetuneDiverged, Listeners, micro_batches
from mars_core.training.methods.method import trained
from tasks.final.train import release, settings_of, train
from tasks.inputs.opened import Inputs
from tasks.settings.accelerate import acceleration_of
from tasks.settings.baselines import read_baseline
from tasks.settings.calibration import CalibrationConfig
from tasks.settings.data import DataConfig
from tasks.settings.final import FinalConfig
from tasks.settings.recipe import ModuleRates, RecipeConfig
from tasks.settings.study import StudyConfig, write_study
from tests.conftest import ROOT

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
    inputs, settings = Inputs(config), settings_of(config, baseline, STEPS, checkpoints)
    wrapped, run = train(inputs, baseline, settings, Listeners(steps.append, log.append))
    weights = {key: value.detach().clone() for key, value in trained(wrapped).items()}
    release(inputs, baseline, wrapped)
    return run, weights, log, steps


def curve(run, key: str) -> list[float]:
    return [entry[key] for entry in run.history if key in entry]


def require_equal(two, others, one, weights):
    """fp32: halves of a batch are summed apart, and eight steps of Adam at 1e-3 enlarge what rounding leaves.

    Adam moves a weight whose gradient is nothing but rounding as far as any other, so that a few weights in a thousand
    may be elsewhere; the losses see none of it.
    """
    for key, tolerance in (("loss", 1e-4), ("eval_loss", 1e-4), ("learning_rate", 1e-12)):
        assert curve(two, key) == pytest.approx(curve(one, key), rel=tolerance)
    assert curve(two, "eval_accuracy") == curve(one, "eval_accuracy")
    assert weights.keys() == others.keys()
    for key in weights:
        near = torch.isclose(others[key], weights[key], rtol=1e-3, atol=1e-5).double().mean()
        assert near > 0.99, key


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pair-2-4", "full-rank", "adalora-4", "learning-rates-1e-4-1e-3"])
def test_two_processes_train_what_one_does(config, tmp_path, name):
    one, weights, _, _ = run_of(config, name, tmp_path / "one")
    two, others, log, steps = run_of(accelerated(config, tmp_path), name, tmp_path / "two")
    assert (one.processes, two.processes) == (one.devices, two.devices) == (1, 2)
    assert (two.steps, two.best_step) == (one.steps, one.best_step)
    require_equal(two, others, one, weights)
    assert steps == list(range(1, STEPS + 1))
    assert [dict(entry) for entry in log] == [dict(entry) for entry in two.history]
    assert two.samples_per_second > 0
    assert two.tokens_per_second > two.samples_per_second


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_precision_is_the_recipes_whatever_the_configuration_says(config, tmp_path, dtype):
    """Against the same run in this process; the losses of the two precisions differ by far more than the tolerance."""
    recipe = config.recipe.model_copy(update={"dtype": dtype})
    settings = config.model_copy(update={"recipe": recipe})
    other = "mixed_precision: bf16\n" if dtype == "float32" else "mixed_precision: 'no'\n"
    one, _, _, _ = run_of(settings, "pair-2-4", tmp_path / "one")
    alone = "distributed_type: 'NO'\nuse_cpu: true\nnum_processes: 1\n" + other
    launched, _, _, _ = run_of(accelerated(settings, tmp_path, alone), "pair-2-4", tmp_path / "launched")
    assert curve(launched, "loss") == pytest.approx(curve(one, "loss"), rel=1e-6)
    assert curve(launched, "eval_loss") == pytest.approx(curve(one, "eval_loss"), rel=1e-6)


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


OTHER = RecipeConfig(
    learning_rate=1e-3,
    max_tokens=512,
    module_learning_rates=ModuleRates(me=2e-3),
    lora_plus_ratio=4,
    optimizer="adamw",
    weight_decay=0.1,
    schedule="linear",
    targets="attention",
)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "recipe"),
    [("pair-2-4", None), ("full-rank", None), ("pair-2-4", OTHER)],
    ids=["pair", "full rank", "pair by another recipe"],
)
def test_two_processes_that_share_one_model_train_what_one_does(config, tmp_path, name, recipe, monkeypatch):
    config = config.model_copy(update={"recipe": recipe or config.recipe})
    one, weights, _, _ = run_of(config, name, tmp_path / "one")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # where the module below is found
    monkeypatch.setattr("tasks.final.train.MODULE", "tests.tasks.final.fsdp_on_cpu")
    two, others, _, _ = run_of(accelerated(config, tmp_path, SHARDED), name, tmp_path / "two")
    assert two.processes == 2
    assert two.best_step == one.best_step
    require_equal(two, others, one, weights)


@pytest.mark.slow
def test_a_killed_launch_goes_on_and_ends_where_an_undisturbed_one_does(config, tmp_path):
    """The owner is killed outright; its processes notice, end, and the next call resumes from their checkpoint."""
    with_two = accelerated(config, tmp_path)
    whole, weights, _, _ = run_of(with_two, "pair-2-4", tmp_path / "whole")
    code = (
        "import sys, json; from pathlib import Path; from tasks.settings.baselines import read_baseline;"
        "from tasks.settings.study import read_study; from tasks.final.train import settings_of, train;"
        "from tasks.inputs.opened import Inputs; from mars_core.training.finetune import Listeners;"
        "config, baseline = read_study(sys.argv[1]), read_baseline('pair-2-4');"
        "train(Inputs(config), baseline, settings_of(config, baseline, 8, Path(sys.argv[2])), Listeners())"
    )
    write_study(with_two, tmp_path / "study.yaml")
    owner = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "study.yaml"), str(tmp_path / "cut")])
    try:
        wait_for(lambda: any((tmp_path / "cut").glob("checkpoint-[2-6]/trainer_state.json")), owner)
        family = psutil.Process(owner.pid).children(recursive=True)
    finally:
        owner.kill()
        owner.wait()
    assert len(family) >= 3  # the launcher and two processes
    _, alive = psutil.wait_procs(family, timeout=60)
    assert not alive
    again, others, log, steps = run_of(with_two, "pair-2-4", tmp_path / "cut")
    assert steps[0] > 1
    assert [entry["step"] for entry in log if "loss" in entry] == list(range(1, STEPS + 1))  # those from before too
    assert curve(again, "eval_loss") == curve(whole, "eval_loss")
    assert all(torch.equal(others[key], weight) for key, weight in weights.items())


def wait_for(happened, process) -> None:
    deadline = time.monotonic() + 300
    while not happened():
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.02)


@pytest.mark.slow
def test_what_goes_wrong_in_the_processes_is_said_here(config, tmp_path):
    broken = config.model_copy(update={"recipe": config.recipe.model_copy(update={"learning_rate": 1e30})})
    with pytest.raises(FinetuneDiverged, match="the final fine-tune diverged by step"):
        run_of(accelerated(broken, tmp_path), "pair-2-4", tmp_path / "diverged")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("distributed_type: MULTI_GPU\nnum_processes: 3\n", "3 processes do not divide the batch of 8"),
        ("distributed_type: MULTI_GPU\nnum_processes: 2\nnum_machines: 2\n", "num_machines is 2"),
        ("distributed_type: DEEPSPEED\nnum_processes: 2\n", "distributed_type DEEPSPEED is not supported"),
        ("distributed_type: MULTI_CPU\nuse_cpu: true\nnum_processes: 2\n", "through MPI only"),
        ("distributed_type: FSDP\nnum_processes: 2\n", "set fsdp_version to 2"),
        (
            "distributed_type: FSDP\nuse_cpu: true\nnum_processes: 2\nfsdp_config: {fsdp_version: 2}\n",
            "shards .FSDP. on GPUs only",
        ),
        ("num_processes: 2\n", "is no accelerate configuration: A `distributed_type` must be specified"),
        ("distributed_type: TWO\nnum_processes: 2\n", "is no accelerate configuration: "),
        ("a: [\n", "is no accelerate configuration: "),
    ],
)
def test_a_configuration_that_cannot_work_is_refused(config, tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        acceleration_of(accelerated(config, tmp_path, text))


def test_a_missing_configuration_says_how_to_write_one(config, tmp_path):
    missing = config.model_copy(update={"final": FinalConfig(accelerate=str(tmp_path / "none.yaml"))})
    with pytest.raises(ValueError, match="accelerate config --config_file"):
        acceleration_of(missing)


def test_the_batch_is_made_up_of_micro_batches_processes_and_accumulation():
    assert micro_batches(8, None, 1) == (8, 1)
    assert micro_batches(8, None, 2) == (4, 1)
    assert micro_batches(8, 1, 2) == (1, 4)
    with pytest.raises(ValueError, match="micro_batch_size 4 in 4 processes does not divide the batch of 8"):
        micro_batches(8, 4, 4)
