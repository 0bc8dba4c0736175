"""LoRA with one rank for the ME and another for the LLM, or one for each layer, through PEFT's rank and alpha patterns.

Alpha follows from the rank by one rule for all layers, or by one for each module, and is always written out:
`alpha = 2 r` in the paper (appendix G.2), which keeps alpha/r the same; a constant alpha or rsLoRA's scale keep the
best learning rate the same over ranks. The projector follows `r_llm` unless it has a rank of its own. Rank 0 leaves
a module without adapter.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TypeVar

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn

from mars_core.models.partition import GROUPS, WHERE, Group, Partition
from mars_core.ranks import Alpha, LayerRanks, RankPair, Ranks, lora_alpha, rule_of

Number = TypeVar("Number", int, float)
FSDP = "_fsdp_wrapped_module."
"""What FSDP puts into the names of the modules that it wraps."""


def check_ranks(partition: Partition, ranks: Ranks) -> None:
    """Refuse ranks that the model's layers cannot hold.

    Raises:
        ValueError: a negative rank, no rank above 0, a rank above the width of a layer, or one of a layer that is not
            adapted.
    """
    if isinstance(ranks, LayerRanks):
        _check_layer_ranks(partition, ranks)
    else:
        _check_pair(partition, ranks)


def _check_pair(partition: Partition, pair: RankPair) -> None:
    if pair.r_me < 0 or pair.r_llm < 0 or pair == RankPair(0, 0):
        raise ValueError(f"rank pair {pair} is not usable: ranks are 0 or more and at least one is above 0")
    if too_large := [words for group in GROUPS if (words := _too_large(partition, group, partition.rank(pair, group)))]:
        raise ValueError("; ".join(too_large))


def _check_layer_ranks(partition: Partition, ranks: LayerRanks) -> None:
    widths = {
        layer.name: min(layer.in_features, layer.out_features) for group in GROUPS for layer in partition.group(group)
    }
    if not ranks.by_layer:
        raise ValueError("the layer-wise ranks name no layer: give at least one a rank of 1 or more")
    if unknown := [name for name, _ in ranks.by_layer if name not in widths]:
        raise ValueError(
            f"the layer-wise ranks name {len(unknown)} layers that are not adapted (first: {unknown[0]}): use the "
            "paths that `mars model inspect` lists"
        )
    for name, rank in ranks.by_layer:
        if not 1 <= rank <= widths[name]:
            raise ValueError(f"rank {rank} of layer {name} is not usable: use 1 to its width, {widths[name]}")


def _too_large(partition: Partition, group: Group, rank: int) -> str | None:
    largest = partition.largest_rank(group)
    if not partition.group(group) or rank <= largest:
        return None
    narrow = min(partition.group(group), key=lambda layer: min(layer.in_features, layer.out_features))
    return (
        f"rank {rank} for the {group} is above the width {largest} of its layer {narrow.name}: "
        f"use ranks up to {largest}"
    )


def trainable_parameters(partition: Partition, ranks: Ranks) -> int:
    """Number of LoRA parameters: r * (in + out), summed over the adapted layers."""
    by_layer = layer_ranks(partition, ranks)
    layers = [layer for group in GROUPS for layer in partition.group(group)]
    return sum(by_layer.get(layer.name, 0) * (layer.in_features + layer.out_features) for layer in layers)


def layer_ranks(partition: Partition, ranks: Ranks) -> dict[str, int]:
    """LoRA rank of every layer that has an adapter, by its path."""
    if isinstance(ranks, LayerRanks):
        given = dict(ranks.by_layer)
        names = [layer.name for group in GROUPS for layer in partition.group(group)]
        return {name: given[name] for name in names if name in given}
    by_group = {group: partition.rank(ranks, group) for group in GROUPS}
    return {layer.name: by_group[group] for group in GROUPS for layer in partition.group(group) if by_group[group]}


def layer_alphas(partition: Partition, ranks: Ranks, alpha: Alpha) -> dict[str, float]:
    """LoRA's alpha of every layer that has an adapter, by its path; it follows from the layer's own rank."""
    rules = {layer.name: rule_of(alpha, group) for group in GROUPS for layer in partition.group(group)}
    return {name: lora_alpha(rules[name], rank) for name, rank in layer_ranks(partition, ranks).items()}


def lora_config(partition: Partition, ranks: Ranks, *, dropout: float = 0.0, alpha: Alpha = "2r") -> LoraConfig:
    """PEFT configuration of a pair, or of ranks of single layers.

    The top-level `r` is the largest rank (adapter loaders size their buffers by it); `rank_pattern` and
    `alpha_pattern` name every layer by its full path, so that nothing is matched by chance.
    """
    check_ranks(partition, ranks)
    by_layer, alphas = layer_ranks(partition, ranks), layer_alphas(partition, ranks, alpha)
    widest = max(by_layer, key=lambda name: by_layer[name])
    return LoraConfig(
        r=by_layer[widest],
        lora_alpha=alphas[widest],
        lora_dropout=dropout,
        target_modules=sorted(by_layer),
        rank_pattern=_exact_patterns(by_layer),
        alpha_pattern=_exact_patterns(alphas),
        task_type="CAUSAL_LM",
    )


def add_adapters(
    model: nn.Module,
    partition: Partition,
    ranks: Ranks,
    *,
    seed: int,
    dropout: float = 0.0,
    alpha: Alpha = "2r",
) -> PeftModel:
    """Wrap `model` with freshly initialised adapters of `ranks`; `seed` fixes their initial weights.

    Raises:
        ValueError: the ranks do not fit the model, or PEFT adapted other layers than the partition's.
    """
    wrapped = wrap_with(model, lora_config(partition, ranks, dropout=dropout, alpha=alpha), seed=seed)
    try:
        check_adapters(wrapped, partition, ranks, alpha)
    except ValueError:
        remove_adapters(wrapped)
        raise
    return wrapped


def wrap_with(model: nn.Module, config: LoraConfig, *, seed: int) -> PeftModel:
    """Wrap `model` with the fresh adapters of a PEFT configuration; `seed` fixes their initial weights.

    Raises:
        ValueError: PEFT adapted other layers than those that the configuration names.
    """
    layers = set(config.target_modules or ())  # PEFT may shorten the names
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # PEFT initialises on the CPU; CUDA's generators stay as they are
        wrapped = get_peft_model(model, config)
    try:
        _check_layers(wrapped, layers)
    except ValueError:
        remove_adapters(wrapped)
        raise
    return wrapped


def check_adapters(wrapped: nn.Module, partition: Partition, ranks: Ranks, alpha: Alpha = "2r") -> None:
    """Hold the adapters found in a model against the partition: names, ranks and alpha, layer by layer.

    Raises:
        ValueError: a layer is missing, unexpected, or has another rank or scale.
    """
    expected, alphas = layer_ranks(partition, ranks), layer_alphas(partition, ranks, alpha)
    _check_layers(wrapped, set(expected))
    found = adapter_ranks(wrapped)
    for name, (rank, scale) in found.items():
        wanted = alphas[name] / expected[name]
        if rank != expected[name] or not math.isclose(scale, wanted):
            raise ValueError(
                f"layer {name} has rank {rank} and alpha/r {scale}, expected {expected[name]} and {wanted}"
            )


def _check_layers(wrapped: nn.Module, expected: set[str]) -> None:
    found = adapter_ranks(wrapped).keys()
    if found != expected:
        missing, extra = sorted(expected - found), sorted(found - expected)
        raise ValueError(
            f"adapters were put on {len(found)} layers, expected {len(expected)}: missing {missing[:3]}, "
            f"unexpected {extra[:3]}. Check the module paths, {WHERE}"
        )


def adapter_ranks(wrapped: nn.Module) -> dict[str, tuple[int, float]]:
    """Rank and alpha/r of every adapted layer, by its path in the base model."""
    return {
        name.removeprefix("base_model.model."): (module.r["default"], module.scaling["default"])
        for name, module in wrapped.named_modules()
        if isinstance(module, LoraLayer)
    }


def parameters_by_group(wrapped: nn.Module, partition: Partition) -> dict[Group, dict[str, nn.Parameter]]:
    """Trainable parameters of each group by name: of adapters, or the layers' own weights."""
    group_of = {layer.name: group for group in GROUPS for layer in partition.group(group)}
    groups: dict[Group, dict[str, nn.Parameter]] = {group: {} for group in GROUPS}
    for name, parameter in wrapped.named_parameters():
        if parameter.requires_grad:
            layer = name.replace(FSDP, "").removeprefix("base_model.model.").split(".lora_")[0]
            groups[group_of[layer.removesuffix(".weight")]][name] = parameter
    return groups


def remove_adapters(wrapped: PeftModel) -> nn.Module:
    """Return the base model as it was before `add_adapters`."""
    base: nn.Module = wrapped.unload()
    return base


def adapter_state(wrapped: nn.Module) -> Mapping[str, torch.Tensor]:
    """Adapter weights by name, detached copies on the CPU."""
    return {
        name: parameter.detach().cpu().clone()
        for name, parameter in wrapped.named_parameters()
        if parameter.requires_grad
    }


def _exact_patterns(values: Mapping[str, Number]) -> dict[str, Number]:
    # PEFT matches `(.*\.)?({key})$`, so an escaped full path matches that layer alone.
    return {re.escape(name): value for name, value in values.items()}
