"""A checkpoint's fingerprint: what changes it, and that large weights are not read whole."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mars_core.demo import demo_backbone_path
from tasks.resources import PIECE, PIECES, model_fingerprint

LARGE = 100 * PIECE


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
    model_fingerprint.cache_clear()
    return model_fingerprint(str(folder))


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


def test_a_hub_id_stands_for_its_present_commit(tmp_path):
    repository = tmp_path / "models--org--model"
    commits = ("1" * 40, "2" * 40)
    for commit in commits:
        (repository / "snapshots" / commit).mkdir(parents=True)
        shutil.copy(demo_backbone_path() / "config.json", repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    code = "from tasks.resources import model_fingerprint; print(model_fingerprint('org/model'))"
    found = []
    for commit in (*commits, commits[0]):
        (repository / "refs" / "main").write_text(commit)
        environment = {**os.environ, "HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
        run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        found.append(run.stdout.strip())
    assert found[0] == found[2] != found[1]
