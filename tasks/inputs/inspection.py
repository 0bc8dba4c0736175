"""Describe a base checkpoint, from its configuration alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from mars_core.models.loading import read_model_type, skeleton
from mars_core.models.lora import trainable_parameters
from mars_core.models.partition import GROUPS, Group, Partition
from mars_core.packing.footprint import adapter_bytes, frozen_bytes
from mars_core.ranks import RankPair
from tasks.settings.study import read_study


def inspect_model(target: str, ranks: Sequence[int], *, trust_remote_code: bool = False) -> dict[str, Any]:
    """Partition, LoRA targets, trainable parameters and memory of a checkpoint, as JSON values.

    target: a checkpoint folder, a hub id, or a study file, whose `family` section then counts.

    Raises:
        ValueError: there is no such checkpoint, or MARS does not know its modules.
    """
    model, family = target, None
    if target.endswith((".yaml", ".yml")):
        config = read_study(Path(target))
        model, family = config.model, config.family.as_family() if config.family else None
        trust_remote_code = trust_remote_code or config.loading.trust_remote_code
    network, partition = skeleton(model, family=family, trust_remote_code=trust_remote_code)
    return {
        "model": model,
        "model_type": read_model_type(model, trust_remote_code=trust_remote_code),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "groups": {group: _group(partition, group, ranks) for group in GROUPS},
        "excluded": list(partition.excluded),
        "pairs": [_pair(partition, RankPair(*pair)) for pair in product(ranks, repeat=2) if _fits(partition, *pair)],
        "memory": _memory(network, partition, ranks),
    }


def _group(partition: Partition, group: Group, ranks: Sequence[int]) -> dict[str, Any]:
    layers = partition.group(group)
    widths = Counter((layer.in_features, layer.out_features) for layer in layers)
    return {
        "layers": len(layers),
        "widths": [{"in": i, "out": o, "layers": count} for (i, o), count in widths.items()],
        "largest_rank": partition.largest_rank(group),
        "parameters_per_rank": partition.parameters_per_rank(group),
        "lora_parameters": {str(rank): rank * partition.parameters_per_rank(group) for rank in ranks},
        "targets": [layer.name for layer in layers],
    }


def _fits(partition: Partition, r_me: int, r_llm: int) -> bool:
    narrow = [partition.largest_rank(group) for group in ("projector", "llm") if partition.group(group)]
    return r_me <= partition.largest_rank("me") and r_llm <= min(narrow)


def _pair(partition: Partition, pair: RankPair) -> dict[str, int]:
    return {
        "r_me": pair.r_me,
        "r_llm": pair.r_llm,
        "trainable_parameters": trainable_parameters(partition, pair),
        "adapter_and_adam_bytes": adapter_bytes(partition, [pair]),
    }


def _memory(network: Any, partition: Partition, ranks: Sequence[int]) -> dict[str, Any]:
    pairs = [RankPair(*pair) for pair in product(ranks, repeat=2) if _fits(partition, *pair)]
    frozen, adapters = frozen_bytes(network, partition), adapter_bytes(partition, pairs)
    return {
        "frozen_bytes": frozen,
        "pack_runs": len(pairs),
        "pack_adapter_and_adam_bytes": adapters,
        "pack_bytes_without_activations": {kept: amount + adapters for kept, amount in frozen.items()},
    }
