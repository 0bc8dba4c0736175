"""Checkpoints of a final run: which are whole, and which of them training can go on from.

The Trainer writes a checkpoint file by file. A hash of each is written when all are there, so that one that a kill, a
full disk or a bad disk has damaged is told from a whole one, and is not gone on with.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

CHECKSUMS = "checksums.json"


def write_checksums(checkpoint: Path) -> None:
    """Record the SHA-256 of every file of a checkpoint that is whole now, and wait until the disk has all of it."""
    found = {str(file.relative_to(checkpoint)): _hash_on_disk(file) for file in _files(checkpoint)}
    beside = checkpoint / f".{CHECKSUMS}"
    with beside.open("w", encoding="utf-8") as file:
        json.dump(found, file, indent=2)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(checkpoint / CHECKSUMS)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint in a folder that training can go on from; None where there is none."""
    damaged = set(damaged_checkpoints(folder))
    return max((one for one in _begun(folder) if one not in damaged), key=step_of, default=None)


def damaged_checkpoints(folder: Path) -> list[Path]:
    """Checkpoints that cannot be gone on with: they are not whole, or what they call the best one is not."""
    begun = _begun(folder)
    broken = {one for one in begun if not _is_whole(one)}
    lost = {one for one in begun if one not in broken and not _best_is_there(one, broken)}
    return sorted(broken | lost, key=step_of)


def read_trainer_state(checkpoint: Path) -> TrainerState:
    """The Trainer's state in a checkpoint."""
    return TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))


def step_of(checkpoint: Path) -> int:
    """The step that a checkpoint was taken after."""
    return int(checkpoint.name.rpartition("-")[2])


def _begun(folder: Path) -> list[Path]:
    found = folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
    return [one for one in found if one.is_dir() and one.name.rpartition("-")[2].isdecimal()]


def _is_whole(checkpoint: Path) -> bool:
    try:
        read_trainer_state(checkpoint)  # the Trainer writes it last
        recorded = _recorded(checkpoint)
    except (OSError, ValueError, TypeError, AttributeError):
        return False
    if recorded is None:  # checkpoints of several processes, and those of before there were records
        return all(file.stat().st_size > 0 for file in _files(checkpoint))
    return all(
        (checkpoint / name).is_file() and _hash(checkpoint / name) == digest for name, digest in recorded.items()
    )


def _recorded(checkpoint: Path) -> Mapping[str, str] | None:
    path = checkpoint / CHECKSUMS
    if not path.is_file():
        return None
    recorded: Mapping[str, str] = json.loads(path.read_text(encoding="utf-8"))
    return dict(recorded)


def _best_is_there(checkpoint: Path, broken: set[Path]) -> bool:
    best = read_trainer_state(checkpoint).best_model_checkpoint
    if best is None:
        return True
    beside = checkpoint.parent / Path(best).name
    return beside.is_dir() and beside not in broken


def _files(checkpoint: Path) -> list[Path]:
    return sorted(file for file in checkpoint.rglob("*") if file.is_file() and file.name.lstrip(".") != CHECKSUMS)


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _hash_on_disk(path: Path) -> str:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()
