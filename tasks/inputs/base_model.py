"""Read the base model that a study's settings name, and the device."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mars_core.metrics.identity import content_hash
from mars_core.models.loading import Base, load_base, read_commit, read_model_type, read_processor, skeleton
from mars_core.models.partition import Partition
from mars_core.models.targets import adapting
from tasks.running.memory import LOADING, out_of_memory
from tasks.settings.study import StudyConfig

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def study_dtype(config: StudyConfig) -> torch.dtype:
    """The number format that a study's recipe computes in."""
    return DTYPES[config.recipe.dtype]


@out_of_memory("loading the base model", LOADING)
def load_study_base(config: StudyConfig, device: torch.device, dtype: torch.dtype, *, spread: bool = False) -> Base:
    """Load the frozen base model of a study, with the layers that its recipe adapts.

    spread: over all GPUs.
    """
    family, loading = config.family.as_family() if config.family else None, config.loading.as_loading()
    base = load_base(config.model, device=device, dtype=dtype, family=family, loading=loading, spread=spread)
    partition = _adapted(base.partition, config)
    return base if partition == base.partition else replace(base, partition=partition)


def study_skeleton(config: StudyConfig) -> tuple[nn.Module, Partition]:
    """The network of a study's base model without its weights, and its partition."""
    family = config.family.as_family() if config.family else None
    network, partition = skeleton(config.model, family=family, trust_remote_code=config.loading.trust_remote_code)
    return network, _adapted(partition, config)


def _adapted(partition: Partition, config: StudyConfig) -> Partition:
    recipe = config.recipe.as_recipe()
    return adapting(partition, recipe.targets, recipe.projector_rank)


def study_processor(config: StudyConfig) -> Any:
    """The base model's processor; its weights are not read."""
    return read_processor(config.model, trust_remote_code=config.loading.trust_remote_code)


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


def model_fingerprint(config: StudyConfig) -> str:
    """Hash of the base model: of its checkpoint, and of how it is read where that changes results."""
    checkpoint = checkpoint_fingerprint(config.model, config.loading.trust_remote_code)
    family = config.family and config.family.model_dump(mode="json")
    read = {"family": family, "four_bit": config.loading.four_bit}
    return content_hash({"checkpoint": checkpoint, **read}) if any(read.values()) else checkpoint


def checkpoint_fingerprint(model: str, trust_remote_code: bool = False) -> str:
    """Hash of a checkpoint: of its configuration, code, tokenizer and processor whole, and of its weights.

    Weight files of up to 64 MiB are read whole; of larger ones 64 pieces of 1 MiB, evenly spread, so that training a
    checkpoint further shows without reading all of it. A hub id stands for itself at its present commit.
    """
    read_model_type(model, trust_remote_code=trust_remote_code)
    folder = Path(model)
    if not folder.is_dir():
        return content_hash({"hub": model, "commit": read_commit(model)})
    patterns = ("*.json", "*.jinja", "*.safetensors", "*.txt", "*.py")
    files = sorted(path for pattern in patterns for path in folder.glob(pattern))
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
