"""Load a base checkpoint with its partition and processor."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.utils.hub import cached_file, extract_commit_hash

from mars_core.models.families import Family, family_of
from mars_core.models.partition import Partition, partition_of
from mars_core.models.processor import load_processor


@dataclass(frozen=True)
class Base:
    """A loaded base model: frozen weights, partition, processor."""

    model: nn.Module
    partition: Partition
    processor: Any
    model_id: str

    @property
    def pad_token_id(self) -> int:
        """Token id used for padding."""
        tokenizer = self.processor.tokenizer
        return int(tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id)


def load_base(model: str, *, device: torch.device, dtype: torch.dtype, trust_remote_code: bool = False) -> Base:
    """Load checkpoint `model` (a local folder or hub id) with frozen weights on `device`.

    Raises:
        ValueError: the checkpoint cannot be found or read, its type is unknown, it lacks weights, or a module has no
            linear layers.
    """
    model = _expanded(model)
    family = family_of(read_model_type(model, trust_remote_code=trust_remote_code))
    try:
        processor = load_processor(model, trust_remote_code=trust_remote_code)
        network, loaded = AutoModelForImageTextToText.from_pretrained(
            model, dtype=dtype, trust_remote_code=trust_remote_code, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ValueError(f"model {model!r} could not be loaded: {_first_line(error)}") from error
    _check_complete(model, loaded["missing_keys"], family)
    network.requires_grad_(False)
    network.config.use_cache = False
    return Base(network.to(device).eval(), partition_of(network, family), processor, model)


def _check_complete(model: str, missing: Iterable[str], family: Family) -> None:
    # transformers fills in what is missing with random weights and goes on.
    needed = sorted(name for name in missing if not any(re.fullmatch(pattern, name) for pattern in family.unused))
    if needed:
        raise ValueError(
            f"model {model!r} lacks {len(needed)} weights (first: {needed[0]}): give a complete checkpoint of the "
            "architecture that its config.json names"
        )


def read_model_type(model: str, *, trust_remote_code: bool = False) -> str:
    """Return a checkpoint's `config.model_type` without reading its weights.

    Raises:
        ValueError: there is no such folder or hub id, or it has no readable configuration.
    """
    model = _expanded(model)
    is_local = model.startswith((".", "/")) or Path(model).exists()
    if is_local and not (Path(model) / "config.json").is_file():
        raise ValueError(
            f"model {model!r} is not a checkpoint folder: no config.json in it. "
            "Give a folder with a transformers checkpoint, or a hub id such as "
            "llava-hf/llava-onevision-qwen2-0.5b-ov-hf"
        )
    try:
        config = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        fault = (
            "has no usable config.json" if is_local else "is neither a local checkpoint folder nor a reachable hub id"
        )
        raise ValueError(f"model {model!r} {fault}: {_first_line(error)}") from error
    return str(config.model_type)


def read_commit(model: str) -> str | None:
    """The commit that a hub id stands for at present, in the local cache where the hub cannot be reached."""
    commit: str | None = extract_commit_hash(cached_file(model, "config.json"), None)
    return commit


def _expanded(model: str) -> str:
    return str(Path(model).expanduser()) if model.startswith("~") else model


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
