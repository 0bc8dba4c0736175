"""An image that becomes unreadable while a final run trains: it is named, and once it is right the run goes on."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook

from flows.stages import finetune_flow
from tasks.choice.search import chosen_pair
from tasks.final.arm import Arm
from tasks.final.pair import final_folder
from tasks.final.record import read_final
from tasks.running.kept import kept_open
from tasks.settings.study import StudyConfig, write_study
from tasks.storage.folder import Revision


@pytest.fixture
def own(copied: StudyConfig, tmp_path: Path, demo_data: Path) -> StudyConfig:
    """The finished study with images of its own, without its final run."""
    shutil.copytree(demo_data / "images", tmp_path / "images")
    config = copied.model_copy(update={"data": copied.data.model_copy(update={"images": str(tmp_path / "images")})})
    write_study(config, tmp_path / "study.yaml")
    revision = Revision(Path(config.study), 1)
    shutil.rmtree(revision.path("final"))
    for manifest in revision.path("manifests").glob("finetune-*"):
        manifest.unlink()
    return config


@contextmanager
def breaking(images: Path, after: int) -> Iterator[None]:
    """Images are cut short once so many forward passes have trained; whole again at the end."""
    whole = {file: file.read_bytes() for file in images.iterdir()}
    passes = 0

    def look(module: nn.Module, _: object) -> None:
        nonlocal passes
        passes += isinstance(module, nn.Embedding) and module.num_embeddings > 100 and torch.is_grad_enabled()
        if passes == after:
            for file, content in whole.items():
                file.write_bytes(content[: len(content) // 2])

    handle = register_module_forward_pre_hook(look)
    try:
        yield
    finally:
        handle.remove()
        for file, content in whole.items():
            file.write_bytes(content)
    assert passes >= after


@pytest.mark.slow
def test_an_image_that_breaks_during_a_final_run_is_named_and_the_run_goes_on_once_it_is_right(own):
    revision = Revision(Path(own.study), 1)
    pair, arm = chosen_pair(revision), Arm(chosen_pair(revision))
    named = r"train\.json, row \d+ \(line \d+\): unreadable image '.+' \(.+\): replace the file"
    with kept_open(), breaking(Path(own.data.images), after=5), pytest.raises(ValueError, match=named):
        finetune_flow(own, *pair)
    assert not (final_folder(revision, arm) / "adapter").exists()
    assert not (final_folder(revision, arm) / "training.json").exists()
    adapter = Path(finetune_flow(own, *pair))
    assert list(adapter.glob("*.safetensors"))
    record = read_final(revision, arm)
    assert record.steps == record.history[-1]["step"]
