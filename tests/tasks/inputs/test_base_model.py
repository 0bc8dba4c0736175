"""A checkpoint's fingerprint: what changes it, and that large weights are not read whole."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch

from mars_core.demo import demo_backbone_path
from tasks.inputs.base_model import (
    PIECE,
    PIECES,
    checkpoint_fingerprint,
    model_fingerprint,
)
from tasks.inputs.opened import Inputs, open_inputs
from tasks.running.kept import kept_open
from tasks.settings.data import DataConfig
from tasks.settings.model import FamilyConfig, LoadingConfig
from tasks.settings.recipe import RecipeConfig
from tasks.settings.study import StudyConfig

LARGE = 100 * PIECE
FAMILY = FamilyConfig(me="model.vision_tower", projector=("model.multi_modal_projector",), llm="model.language_model")


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint folder with a weight file that is too large to be read whole (sparse on disk)."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    shutil.copy(demo_backbone_path() / "config.json", folder)
    with (folder / "model.safetensors").open("wb") as file:
        file.truncate(LARGE)
    return folder


def fingerprint(folder: Path) -> str:
    return checkpoint_fingerprint(str(folder))


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_weights_of_equal_size_that_were_trained_further_are_seen(checkpoint, share):
    before = fingerprint(checkpoint)
    with (checkpoint / "model.safetensors").open("r+b") as file:
        file.seek(int(share * (LARGE - 2 * PIECE)))
        file.write(os.urandom(2 * PIECE))  # a stretch as long as the gaps between the pieces that are read
    assert LARGE > PIECE * PIECES
    assert fingerprint(checkpoint) != before


def test_configuration_counts(checkpoint):
    before = fingerprint(checkpoint)
    config = checkpoint / "config.json"
    config.write_text(config.read_text() + "\n")
    assert fingerprint(checkpoint) != before


def test_a_hub_id_stands_for_its_present_commit(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    repository = tmp_path / "models--org--model"
    commits = ("1" * 40, "2" * 40)
    for commit in commits:
        (repository / "snapshots" / commit).mkdir(parents=True)
        shutil.copy(demo_backbone_path() / "config.json", repository / "snapshots" / commit)
    (repository / "refs").mkdir()

    def fingerprint_at(commit):
        (repository / "refs" / "main").write_text(commit)
        return checkpoint_fingerprint("org/model")

    found = [fingerprint_at(commit) for commit in (*commits, commits[0])]
    assert found[0] == found[2] != found[1]


@pytest.fixture
def study():
    """Makes a study of the demo backbone."""
    return lambda **changes: StudyConfig(
        study="out", model=str(demo_backbone_path()), data=DataConfig(train="train.json"), device="cpu", **changes
    )


def test_what_changes_results_changes_the_fingerprint(study):
    plain = model_fingerprint(study())
    assert model_fingerprint(study(loading=LoadingConfig(attn_implementation="eager"))) == plain
    assert model_fingerprint(study(loading=LoadingConfig(gradient_checkpointing=True))) == plain
    others = [
        model_fingerprint(study(family=FAMILY)),
        model_fingerprint(study(family=FAMILY.model_copy(update={"unused": ("x",)}))),
        model_fingerprint(study(loading=LoadingConfig(four_bit=True))),
    ]
    assert len({plain, *others}) == 4


def test_a_described_family_and_the_attention_reach_the_base_model(study):
    base = Inputs(study(family=FAMILY, loading=LoadingConfig(attn_implementation="eager"))).base_model
    assert base.partition.family == FAMILY.as_family()
    assert base.model.config._attn_implementation == "eager"


def test_the_base_model_is_loaded_once_and_anew_where_it_was_dropped(study):
    inputs = Inputs(study(recipe=RecipeConfig(targets="attention")))
    first = inputs.base_model
    assert inputs.base_model is first
    assert inputs.final_base_model is first
    assert len(first.partition.group("llm")) == 3 * 4
    assert inputs.partition == first.partition
    assert inputs.processor.tokenizer.get_vocab() == first.processor.tokenizer.get_vocab()
    inputs.drop_models()
    assert inputs.base_model.model is not first.model


def test_a_block_has_one_set_of_inputs_for_equal_settings_and_the_next_block_its_own(study):
    with kept_open():
        first = open_inputs(study())
        with kept_open():
            assert open_inputs(study()) is first
        assert open_inputs(study(micro_batch_size=2)) is not first
    with kept_open():
        assert open_inputs(study()) is not first
    assert open_inputs(study()) is not open_inputs(study())


@pytest.mark.skipif(torch.cuda.is_available(), reason="what is said where there is no GPU")
def test_spreading_the_base_concerns_the_final_run_alone_and_needs_a_gpu(study):
    """Packs share one device and take the model as ever; the final run is refused before anything is trained."""
    plain = study().model_copy(update={"device": "auto"})
    spread = plain.model_copy(update={"loading": LoadingConfig(spread=True)})
    assert Inputs(spread).partition == Inputs(plain).partition
    assert model_fingerprint(spread) == model_fingerprint(plain)
    with pytest.raises(ValueError, match=r"loading\.spread needs GPUs, and PyTorch sees no CUDA device here"):
        _ = Inputs(spread).final_base_model
    with pytest.raises(ValueError, match=r"loading\.spread is for GPUs, and device is cpu"):
        study(loading=LoadingConfig(spread=True))
