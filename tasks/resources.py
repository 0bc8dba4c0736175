"""The base model and the device, loaded once per process and shared by the tasks that need them."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

import torch

from mars_core.metrics.identity import content_hash
from mars_core.models.loading import Base, load_base, read_commit, read_model_type

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@lru_cache(maxsize=1)
def base_model(model: str, device: str, dtype: str) -> Base:
    """Return the frozen base model of a study."""
    return load_base(model, device=resolve_device(device), dtype=DTYPES[dtype])


def resolve_device(name: str) -> torch.device:
    """Turn `auto`, `cpu` or `cuda` into a device.

    Raises:
        ValueError: the name is none of these, or CUDA is asked for and absent.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"device {name!r} is not known: use auto, cpu or cuda") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {name!r} was asked for, but PyTorch sees no CUDA device here: use auto or cpu")
    if device.index:
        # The Trainer takes the first visible device, whatever the model's.
        raise ValueError(f"device {name!r}: use cuda, and choose the GPU with CUDA_VISIBLE_DEVICES={device.index}")
    return device


def device_name(device: torch.device) -> str:
    """Name of the device as people know it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


@lru_cache(maxsize=4)
def model_fingerprint(model: str) -> str:
    """Hash of a checkpoint: of its configuration, tokenizer and processor whole, and of its weights.

    Weight files of up to 64 MiB are read whole; of larger ones 64 pieces of 1 MiB, evenly spread, so that training a
    checkpoint further shows without reading all of it. A hub id stands for itself at its present commit.
    """
    read_model_type(model)
    folder = Path(model)
    if not folder.is_dir():
        return content_hash({"hub": model, "commit": read_commit(model)})
    files = sorted(path for pattern in ("*.json", "*.jinja", "*.safetensors", "*.txt") for path in folder.glob(pattern))
    return content_hash({file.name: _weights_digest(file) for file in files})


PIECE, PIECES = 1 << 20, 64


def _weights_digest(file: Path) -> list[str | int]:
    size, digest = file.stat().st_size, hashlib.sha256()
    with file.open("rb") as stream:
        if size <= PIECE * PIECES:
            digest.update(stream.read())
        else:
            for piece in range(PIECES):
                stream.seek(piece * (size - PIECE) // (PIECES - 1))
                digest.update(stream.read(PIECE))
    return [size, digest.hexdigest()]
