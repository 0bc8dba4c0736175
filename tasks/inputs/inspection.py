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
from tasks.inputs.base_model import study_skeleton
from tasks.settings.study import StudyConfig, read_study

DEFAULT_RANKS = (8, 16, 32, 64)


def inspect_model(target: str, ranks: Sequence[int] | None, *, trust_remote_code: bool = False) -> dict[str, Any]:
    """Partition, LoRA targets, trainable parameters and memory of a checkpoint, as JSON values.

    target: a checkpoint folder, a hub id, or a study file, whose `family` section and
    `recipe.targets` then count. ranks: None for those that a study calibrates or may choose, else the usual ones.

    Raises:
        ValueError: there is no such checkpoint, or MARS does not know its modules.
    """
    model = target
    if target.endswith((".yaml", ".yml")):
        config = read_study(Path(target))
        model, trust_remote_code = config.model, trust_remote_code or config.loading.trust_remote_code
        loading = config.loading.model_copy(update={"trust_remote_code": trust_remote_code})
        network, partition = study_skeleton(config.model_copy(update={"loading": loading}))
        ranks = ranks or _ranks_of(config)
    else:
        network, partition = skeleton(model, trust_remote_code=trust_remote_code)
    ranks = ranks or DEFAULT_RANKS
    return {
        "model": model,
        "model_type": read_model_type(model, trust_remote_code=trust_remote_code),
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "groups": {group: _group(partition, group, ranks) for group in GROUPS},
        "excluded": [*partition.excluded, *_left_out(partition)],
        "pairs": [_pair(partition, pair) for pair in _fitting(partition, ranks)],
        "memory": _memory(network, partition, ranks),
    }


def _ranks_of(config: StudyConfig) -> list[int]:
    """Every positive rank that a study calibrates or may choose."""
    grids = (config.calibration.grid, config.available_ranks)
    return sorted({rank for grid in grids for rank in (*grid.me, *grid.llm) if rank > 0})


def _left_out(partition: Partition) -> list[str]:
    """Layers that the recipe does not adapt."""
    return [layer.name for group in GROUPS for layer in partition.every(group) if layer not in partition.group(group)]


def _group(partition: Partition, group: Group, ranks: Sequence[int]) -> dict[str, Any]:
    layers = partition.group(group)
    widths = Counter((layer.in_features, layer.out_features) for layer in layers)
    return {
        "layers": len(layers),
        "widths": [{"in": i, "out": o, "layers": count} for (i, o), count in widths.items()],
        "largest_rank": partition.largest_rank(group),
        "parameters_per_rank": partition.parameters_per_rank(group),
        "lora_parameters": {
            str(rank): partition.rank(RankPair(rank, rank), group) * partition.parameters_per_rank(group)
            for rank in ranks
        },
        "targets": [layer.name for layer in layers],
    }


def _fitting(partition: Partition, ranks: Sequence[int]) -> list[RankPair]:
    """The pairs of these ranks that the layers can hold."""
    groups = [group for group in GROUPS if partition.group(group)]
    return [
        pair
        for pair in (RankPair(*both) for both in product(ranks, repeat=2))
        if all(partition.rank(pair, group) <= partition.largest_rank(group) for group in groups)
    ]


def _pair(partition: Partition, pair: RankPair) -> dict[str, int]:
    return {
        "r_me": pair.r_me,
        "r_llm": pair.r_llm,
        "trainable_parameters": trainable_parameters(partition, pair),
        "adapter_and_adam_bytes": adapter_bytes(partition, [pair]),
    }


def _memory(network: Any, partition: Partition, ranks: Sequence[int]) -> dict[str, Any]:
    pairs = _fitting(partition, ranks)
    frozen, adapters = frozen_bytes(network, partition), adapter_bytes(partition, pairs)
    return {
        "frozen_bytes": frozen,
        "pack_runs": len(pairs),
        "pack_adapter_and_adam_bytes": adapters,
        "pack_bytes_without_activations": {kept: amount + adapters for kept, amount in frozen.items()},
    }
