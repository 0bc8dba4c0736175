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
from transformers import AutoConfig, BitsAndBytesConfig
from transformers.utils import is_bitsandbytes_available
from transformers.utils.hub import cached_file, extract_commit_hash

from mars_core.models.auto import auto_class
from mars_core.models.families import Family
from mars_core.models.load_options import AS_IT_IS, Loading
from mars_core.models.partition import Partition, partition_of
from mars_core.models.processor import load_processor
from mars_core.models.recognise import recognise


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


def load_base(
    model: str,
    *,
    device: torch.device,
    dtype: torch.dtype,
    family: Family | None = None,
    loading: Loading = AS_IT_IS,
    spread: bool = False,
) -> Base:
    """Load checkpoint `model` (a local folder or hub id) with frozen weights on `device`.

    family: where its modules are, None to look its type up. spread: over all visible GPUs instead.

    Raises:
        ValueError: the checkpoint cannot be found or read, its type is unknown, it lacks weights, a module has no
            linear layers, or this machine cannot load it in the way that was asked for.
    """
    model = _expanded(model)
    model_type = read_model_type(model, trust_remote_code=loading.trust_remote_code)
    family = family or recognise(model, model_type, trust_remote_code=loading.trust_remote_code)
    processor = read_processor(model, trust_remote_code=loading.trust_remote_code)
    try:
        network, loaded = auto_class(model_type).from_pretrained(
            model,
            dtype=dtype,
            trust_remote_code=loading.trust_remote_code,
            attn_implementation=loading.attn_implementation,
            quantization_config=four_bit_config(dtype) if loading.four_bit else None,
            device_map=_device_map(device, four_bit=loading.four_bit, spread=spread),
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError, ImportError, SafetensorError) as error:
        raise ValueError(f"model {model!r} could not be loaded: {_first_line(error)}") from error
    _check_complete(model, loaded["missing_keys"], family)
    network.requires_grad_(False)
    network.config.use_cache = False
    if loading.four_bit:
        _keep_trainable_on_a_cpu(network)
    elif not spread:
        network = network.to(device)
    return Base(network.eval(), partition_of(network, family), processor, model)


def read_processor(model: str, *, trust_remote_code: bool = False) -> Any:
    """The processor of checkpoint `model`, without its weights.

    Raises:
        ValueError: the checkpoint cannot be found, or has no processor that can be read.
    """
    try:
        return load_processor(_expanded(model), trust_remote_code=trust_remote_code)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise ValueError(f"model {model!r} could not be loaded: {_first_line(error)}") from error


def four_bit_config(dtype: torch.dtype) -> BitsAndBytesConfig:
    """QLoRA's settings: NF4, double quantization, products in `dtype`.

    Raises:
        ValueError: bitsandbytes is not installed.
    """
    if not is_bitsandbytes_available():
        raise ValueError(
            "a 4-bit base needs bitsandbytes, which is not installed: pip install 'mars-rank-search[four-bit]', or set "
            "loading.four_bit to false"
        )
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )


def _keep_trainable_on_a_cpu(network: nn.Module) -> None:
    # In evaluation mode bitsandbytes repacks weights for some CPUs, in a form that no gradient passes.
    for module in network.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]


def _device_map(device: torch.device, *, four_bit: bool, spread: bool) -> Any:
    if not spread:
        return {"": str(device)} if four_bit else None  # 4-bit weights are made where they will stay
    if not torch.cuda.is_available():
        raise ValueError("loading.spread needs GPUs, and PyTorch sees no CUDA device here: set it to false")
    return "balanced"


def skeleton(
    model: str, *, family: Family | None = None, trust_remote_code: bool = False
) -> tuple[nn.Module, Partition]:
    """The network that a checkpoint's configuration describes, on the meta device: shapes without weights.

    Raises:
        ValueError: the checkpoint cannot be found, its type is unknown, or a module has no linear layers.
    """
    model = _expanded(model)
    model_type = read_model_type(model, trust_remote_code=trust_remote_code)
    family = family or recognise(model, model_type, trust_remote_code=trust_remote_code)
    config = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code)
    try:
        with torch.device("meta"):
            network = auto_class(model_type).from_config(config, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise ValueError(f"model {model!r} could not be built from its configuration: {_first_line(error)}") from error
    return network, partition_of(network, family)


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
        if "trust_remote_code" in str(error):
            raise ValueError(
                f"model {model!r} comes with code of its own, which is not run unless you ask for it: read that code, "
                "then set loading.trust_remote_code to true (--trust-remote-code)"
            ) from error
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
