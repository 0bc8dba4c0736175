"""Which of the Trainer's checkpoints a killed run goes on from: the newest whose files are all whole."""

from __future__ import annotations

import json
import warnings
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR


def last_checkpoint(folder: Path, steps: int) -> str | None:
    """The newest whole checkpoint of a run of `steps` steps, None where there is none.

    A newer one with a cut or empty file is passed over with a warning that names the file: disks fill up, and machines
    lose power.

    Raises:
        ValueError: the checkpoints are those of a run of another length.
    """
    # The Trainer writes its state last, so a folder without it was left half-written by a killed process.
    found = [state.parent for state in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*/{TRAINER_STATE_NAME}")]
    for checkpoint in sorted(found, key=step_of, reverse=True):
        damaged = _damaged_file(checkpoint)
        if damaged is None:
            _require_length(checkpoint, steps)
            return str(checkpoint)
        warnings.warn(
            f"{damaged} is cut or empty, so training goes on from an older checkpoint, or from the start where there "
            "is none",
            stacklevel=2,
        )
    return None


def _require_length(checkpoint: Path, steps: int) -> None:
    planned = TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME)).max_steps
    if planned != steps:
        raise ValueError(
            f"the checkpoints in {checkpoint.parent} belong to a run of {planned} steps, this one has {steps}: "
            "remove them to train from the start"
        )


def step_of(checkpoint: Path) -> int:
    """The optimizer steps that were done when a checkpoint was written, by its name."""
    return int(checkpoint.name.rpartition("-")[2])


def _damaged_file(checkpoint: Path) -> Path | None:
    """The first file that is not whole: of the checkpoint, or of the best one, which is loaded at the end."""
    for file in sorted(path for path in checkpoint.rglob("*") if path.is_file()):
        if not _is_whole(file):
            return file
    best = json.loads((checkpoint / TRAINER_STATE_NAME).read_text(encoding="utf-8")).get("best_model_checkpoint")
    if best is None or Path(best).name == checkpoint.name:
        return None
    # Beside this one wherever the study lies by now.
    files = sorted(path for path in (checkpoint.parent / Path(best).name).rglob("*.safetensors"))
    return next((file for file in files if not _is_whole(file)), None)


def _is_whole(file: Path) -> bool:
    """As far as its own table of contents tells: of tensors their sizes, of PyTorch's archives the end."""
    try:
        if file.suffix == ".safetensors":
            with safe_open(str(file), framework="pt"):
                return True
        if file.suffix in (".pt", ".pth", ".bin"):
            return zipfile.is_zipfile(file)
        if file.suffix == ".json":
            json.loads(file.read_text(encoding="utf-8"))
        return file.stat().st_size > 0
    except (SafetensorError, OSError, ValueError):
        return False
