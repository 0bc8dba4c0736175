"""Which checkpoints of a final run are gone on with: whole ones, whatever a kill or a bad disk has left."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from transformers import TrainerState

from mars_core.training.checkpoints import CHECKSUMS, damaged_checkpoints, last_checkpoint, write_checksums

FILES = ("adapter_model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth")


def make(folder: Path, step: int, best: int | None = None) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    for name in FILES:
        (checkpoint / name).write_bytes(f"{name} of {step}".encode())
    state = TrainerState(max_steps=8, global_step=step)
    state.best_model_checkpoint = None if best is None else str(folder / f"checkpoint-{best}")
    state.save_to_json(str(checkpoint / "trainer_state.json"))
    write_checksums(checkpoint)
    return checkpoint


def test_the_newest_whole_checkpoint_is_the_last(tmp_path):
    assert last_checkpoint(tmp_path) is None
    for step in (2, 4, 10):
        make(tmp_path, step)
    (tmp_path / "checkpoint-old").mkdir()
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"
    assert damaged_checkpoints(tmp_path) == []


@pytest.mark.parametrize("name", [*FILES, "trainer_state.json", CHECKSUMS])
@pytest.mark.parametrize("damage", ["flipped", "half", "gone"])
def test_a_damaged_file_makes_the_one_before_it_the_last(tmp_path, name, damage):
    make(tmp_path, 2)
    path = make(tmp_path, 4) / name
    data = bytearray(path.read_bytes())
    if damage == "flipped":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif damage == "half":
        path.write_bytes(data[: len(data) // 2])
    else:
        path.unlink()
    if (name, damage) == (CHECKSUMS, "gone"):  # as of an earlier version
        assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-4"
    else:
        assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-2"
        assert damaged_checkpoints(tmp_path) == [tmp_path / "checkpoint-4"]


def test_one_whose_best_checkpoint_is_damaged_or_gone_is_not_gone_on_with(tmp_path):
    make(tmp_path, 1)
    best = make(tmp_path, 2, best=2)
    make(tmp_path, 4, best=2)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-4"
    (best / FILES[0]).write_bytes(b"other")
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-1"
    shutil.rmtree(best)
    assert damaged_checkpoints(tmp_path) == [tmp_path / "checkpoint-4"]


def test_checksums_name_every_file_but_themselves(tmp_path):
    recorded = json.loads((make(tmp_path, 2) / CHECKSUMS).read_text())
    assert sorted(recorded) == sorted([*FILES, "trainer_state.json"])
