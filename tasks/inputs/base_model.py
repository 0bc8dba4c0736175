"""The base model and the device, loaded once per process and shared by the tasks that need them."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mars_core.metrics.identity import content_hash
from mars_core.models.load_options import Loading
from mars_core.models.loading import Base, load_base, read_commit, read_model_type, read_processor, skeleton
from mars_core.models.partition import Partition
from mars_core.models.targets import adapting
from tasks.settings.model import FamilyConfig
from tasks.settings.study import StudyConfig

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def base_model(config: StudyConfig) -> Base:
    """Return the frozen base model of a study, on one device, with the layers that its recipe adapts."""
    return _adapting(_on_one_device(*_settings(config)), config)


def final_base_model(config: StudyConfig) -> Base:
    """The frozen base model as the final run and the test take it: over all GPUs where the study asks for that."""
    if not config.loading.spread:
        return base_model(config)
    return _adapting(_over_all_gpus(*_settings(config)), config)


def load_study_base(config: StudyConfig, device: torch.device, dtype: torch.dtype) -> Base:
    """The frozen base model of a study, loaded anew for one process of several."""
    family, loading = config.family.as_family() if config.family else None, config.loading.as_loading()
    return _adapting(load_base(config.model, device=device, dtype=dtype, family=family, loading=loading), config)


def study_partition(config: StudyConfig) -> Partition:
    """The partition of a study's base model, with the layers that its recipe adapts, without its weights."""
    return _adapted(_partition(config.model, config.family, config.loading.trust_remote_code), config)


def study_skeleton(config: StudyConfig) -> tuple[nn.Module, Partition]:
    """The network of a study's base model without its weights, and its partition."""
    family = config.family.as_family() if config.family else None
    network, partition = skeleton(config.model, family=family, trust_remote_code=config.loading.trust_remote_code)
    return network, _adapted(partition, config)


@lru_cache(maxsize=4)
def _partition(model: str, family: FamilyConfig | None, trust_remote_code: bool) -> Partition:
    return skeleton(model, family=family.as_family() if family else None, trust_remote_code=trust_remote_code)[1]


def _adapting(base: Base, config: StudyConfig) -> Base:
    partition = _adapted(base.partition, config)
    return base if partition == base.partition else replace(base, partition=partition)


def _adapted(partition: Partition, config: StudyConfig) -> Partition:
    recipe = config.recipe.as_recipe()
    return adapting(partition, recipe.targets, recipe.projector_rank)


def _settings(config: StudyConfig) -> tuple[str, str, str, FamilyConfig | None, Loading]:
    return config.model, config.device, config.recipe.dtype, config.family, config.loading.as_loading()


@lru_cache(maxsize=1)
def _on_one_device(model: str, device: str, dtype: str, family: FamilyConfig | None, loading: Loading) -> Base:
    where = resolve_device(device)
    return load_base(
        model, device=where, dtype=DTYPES[dtype], family=family.as_family() if family else None, loading=loading
    )


@lru_cache(maxsize=1)
def _over_all_gpus(model: str, device: str, dtype: str, family: FamilyConfig | None, loading: Loading) -> Base:
    _on_one_device.cache_clear()  # the copy of calibration would take its place on the first GPU
    return load_base(
        model,
        device=resolve_device(device),
        dtype=DTYPES[dtype],
        family=family.as_family() if family else None,
        loading=loading,
        spread=True,
    )


def forget_models() -> None:
    """Look at checkpoints afresh."""
    for remembered in (_on_one_device, _over_all_gpus, _partition, _processor, checkpoint_fingerprint):
        remembered.cache_clear()


def base_processor(config: StudyConfig) -> Any:
    """The base model's processor; its weights are not read."""
    return _processor(config.model, config.loading.trust_remote_code)


@lru_cache(maxsize=1)
def _processor(model: str, trust_remote_code: bool) -> Any:
    return read_processor(model, trust_remote_code=trust_remote_code)


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


@lru_cache(maxsize=4)
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
