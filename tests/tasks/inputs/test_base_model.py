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
    base_model,
    base_processor,
    checkpoint_fingerprint,
    final_base_model,
    model_fingerprint,
    study_partition,
)
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
    checkpoint_fingerprint.cache_clear()
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
        checkpoint_fingerprint.cache_clear()
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
    base = base_model(study(family=FAMILY, loading=LoadingConfig(attn_implementation="eager")))
    assert base.partition.family == FAMILY.as_family()
    assert base.model.config._attn_implementation == "eager"


def test_the_base_model_is_loaded_once(study):
    first = base_model(study())
    assert base_model(study(micro_batch_size=2)) is first
    assert final_base_model(study()) is first
    attention = study(recipe=RecipeConfig(targets="attention"))
    assert base_model(attention).model is first.model  # the same weights, other layers adapted
    assert len(base_model(attention).partition.group("llm")) == 3 * 4
    assert study_partition(attention) == base_model(attention).partition
    assert base_processor(study()).tokenizer.get_vocab() == first.processor.tokenizer.get_vocab()


@pytest.mark.skipif(torch.cuda.is_available(), reason="what is said where there is no GPU")
def test_spreading_the_base_concerns_the_final_run_alone_and_needs_a_gpu(study):
    """Packs share one device and take the model as ever; the final run is refused before anything is trained."""
    plain = study().model_copy(update={"device": "auto"})
    spread = plain.model_copy(update={"loading": LoadingConfig(spread=True)})
    assert base_model(spread) is base_model(plain)
    assert model_fingerprint(spread) == model_fingerprint(plain)
    with pytest.raises(ValueError, match=r"loading\.spread needs GPUs, and PyTorch sees no CUDA device here"):
        final_base_model(spread)
    with pytest.raises(ValueError, match=r"loading\.spread is for GPUs, and device is cpu"):
        study(loading=LoadingConfig(spread=True))
