"""Describe a base checkpoint, from its configuration alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from mars_core.models.loading import read_model_type, skeleton
from mars_core.models.lora import trainable_parameters
from mars_core.models.partition import GROUPS, Group, Partition, other_weights
from mars_core.packing.footprint import adapter_bytes, frozen_bytes
from mars_core.ranks import RankPair
from mars_core.records import Record
from tasks.inputs.base_model import study_skeleton
from tasks.settings.find import find_study
from tasks.settings.study import StudyConfig
from tasks.storage.transfer import STUDY_FILE


@dataclass(frozen=True)
class GroupReport(Record):
    """Linear layers of one module.

    widths: of each kind of layer `in`, `out` and how many `layers`. lora_parameters: by rank.
    """

    layers: int
    widths: tuple[Mapping[str, int], ...]
    largest_rank: int
    parameters_per_rank: int
    lora_parameters: Mapping[str, int]
    targets: tuple[str, ...]


@dataclass(frozen=True)
class PairReport(Record):
    """What a rank pair trains and takes."""

    r_me: int
    r_llm: int
    trainable_parameters: int
    adapter_and_adam_bytes: int


@dataclass(frozen=True)
class MemoryReport(Record):
    """Bytes of the frozen weights as they are kept, and of a pack of all pairs; activations come on top."""

    frozen_bytes: Mapping[str, int]
    pack_runs: int
    pack_adapter_and_adam_bytes: int
    pack_bytes_without_activations: Mapping[str, int]


@dataclass(frozen=True)
class ModelReport(Record):
    """A base checkpoint.

    groups: by module. excluded: linear layers without adapter. pairs: those that fit. family: where the modules are, as
    a study file's `family` section; other_weights: of each `kind` that LoRA does not adapt, `tensors` and `parameters`.
    """

    model: str
    model_type: str
    parameters: int
    groups: Mapping[str, GroupReport]
    excluded: tuple[str, ...]
    pairs: tuple[PairReport, ...]
    memory: MemoryReport
    family: Mapping[str, Any]
    other_weights: tuple[Mapping[str, Any], ...]


DEFAULT_RANKS = (8, 16, 32, 64)


def inspect_model(target: str, ranks: Sequence[int] | None, *, trust_remote_code: bool = False) -> ModelReport:
    """Partition, LoRA targets, trainable parameters and memory of a checkpoint.

    target: a checkpoint folder, a hub id, or a study file or folder, whose `family` section and `recipe.targets` then
    count. ranks: None for those that a study calibrates or may choose, else the usual ones.

    Raises:
        ValueError: there is no such checkpoint, or MARS does not know its modules.
    """
    model = target
    if target.endswith((".yaml", ".yml")) or (Path(target) / STUDY_FILE).is_file():
        config = find_study(target)
        model, trust_remote_code = config.model, trust_remote_code or config.loading.trust_remote_code
        loading = config.loading.model_copy(update={"trust_remote_code": trust_remote_code})
        network, partition = study_skeleton(config.model_copy(update={"loading": loading}))
        ranks = ranks or _ranks_of(config)
    else:
        network, partition = skeleton(model, trust_remote_code=trust_remote_code)
    ranks = ranks or DEFAULT_RANKS
    return ModelReport(
        model,
        read_model_type(model, trust_remote_code=trust_remote_code),
        sum(parameter.numel() for parameter in network.parameters()),
        {group: _group(partition, group, ranks) for group in GROUPS},
        (*partition.excluded, *_left_out(partition)),
        tuple(_pair(partition, pair) for pair in _fitting(partition, ranks)),
        _memory(network, partition, ranks),
        asdict(partition.family),
        tuple(asdict(weights) for weights in other_weights(network, partition.family)),
    )


def _ranks_of(config: StudyConfig) -> list[int]:
    """Every positive rank that a study calibrates or may choose."""
    grids = (config.calibration.grid, config.available_ranks)
    return sorted({rank for grid in grids for rank in (*grid.me, *grid.llm) if rank > 0})


def _left_out(partition: Partition) -> list[str]:
    """Layers that the recipe does not adapt."""
    return [layer.name for group in GROUPS for layer in partition.every(group) if layer not in partition.group(group)]


def _group(partition: Partition, group: Group, ranks: Sequence[int]) -> GroupReport:
    layers = partition.group(group)
    widths = Counter((layer.in_features, layer.out_features) for layer in layers)
    per_rank = partition.parameters_per_rank(group)
    return GroupReport(
        len(layers),
        tuple({"in": i, "out": o, "layers": count} for (i, o), count in widths.items()),
        partition.largest_rank(group),
        per_rank,
        {str(rank): partition.rank(RankPair(rank, rank), group) * per_rank for rank in ranks},
        tuple(layer.name for layer in layers),
    )


def _fitting(partition: Partition, ranks: Sequence[int]) -> list[RankPair]:
    """The pairs of these ranks that the layers can hold."""
    groups = [group for group in GROUPS if partition.group(group)]
    return [
        pair
        for pair in (RankPair(*both) for both in product(ranks, repeat=2))
        if all(partition.rank(pair, group) <= partition.largest_rank(group) for group in groups)
    ]


def _pair(partition: Partition, pair: RankPair) -> PairReport:
    return PairReport(*pair, trainable_parameters(partition, pair), adapter_bytes(partition, [pair]))


def _memory(network: Any, partition: Partition, ranks: Sequence[int]) -> MemoryReport:
    pairs = _fitting(partition, ranks)
    frozen, adapters = frozen_bytes(network, partition), adapter_bytes(partition, pairs)
    both = {kept: amount + adapters for kept, amount in frozen.items()}
    return MemoryReport(frozen, len(pairs), adapters, both)
