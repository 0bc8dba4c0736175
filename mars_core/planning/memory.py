"""Memory of training and scoring, from shapes alone.

What a forward pass keeps for the backward pass is counted per linear layer.

PEFT: what comes in, what goes out, and the adapter's r features in between; a gate's output once more behind its
activation; in bf16 also the fp32 copy that the two norms of each block work on. Held against what passes really keep,
this is between 5% too little and 20% too much (tests).

A pack keeps less: an input once for all layers that read it, no output that is only added to the residual, the rows of
the norms in fp32, and no r features, which it computes again. This is between exact and 15% too much (tests, on models
of 4 blocks); a part of that is the last block of the LLM, which a pack runs at answer tokens alone.

Masks of LoRA dropout are not counted. Buffers of the backward pass and of the allocator come on top, as a margin.
"""

from __future__ import annotations

from collections.abc import Sequence

from mars_core.models.partition import GROUPS, Group
from mars_core.packing.footprint import adapter_bytes
from mars_core.planning.architecture import Architecture
from mars_core.planning.flops import group_tokens
from mars_core.planning.shapes import SampleShape
from mars_core.ranks import RankPair

BYTES = {"float32": 4, "bfloat16": 2}
# Of an adapter's r features a token: kept as they are, or under autocast with copies in both dtypes.
LOW_RANK_BYTES = {"float32": 4, "bfloat16": 10}
NORMS_PER_BLOCK = 2
NORM_BYTES = 4  # norms work in fp32
# By the names of transformers: layers that read what a sibling has read, and layers whose output is only added.
READS_AS_SIBLING = frozenset({"k_proj", "v_proj", "up_proj"})
ONLY_ADDED = frozenset({"o_proj", "out_proj", "proj", "down_proj", "fc2"})
FUSED = "qkv"
# Logits of a step: as computed, as 4-byte numbers, and their gradient.
LOGIT_BYTES = {"float32": 8, "bfloat16": 10}


def weights_bytes(architecture: Architecture, dtype: str, *, four_bit: bool) -> int:
    """Bytes of the frozen weights."""
    return architecture.frozen_bytes["four_bit" if four_bit else dtype]


def activation_bytes(architecture: Architecture, shape: SampleShape, pair: RankPair, dtype: str) -> int:
    """Bytes that one sample's forward pass under PEFT keeps for the backward pass."""
    kept = sum(_kept(architecture, shape, pair, group, dtype) for group in GROUPS if group != "me" or pair.r_me)
    return kept + logits_bytes(architecture, shape, dtype)


def _kept(architecture: Architecture, shape: SampleShape, pair: RankPair, group: Group, dtype: str) -> int:
    layers, adapted = architecture.partition.every(group), architecture.partition.group(group)
    # A frozen weight's gradient is not asked for, so what enters its layer need not be kept.
    features = sum(layer.out_features for layer in layers) + sum(layer.in_features for layer in adapted)
    gates = sum(layer.out_features for layer in layers if layer.name.endswith(".gate_proj"))
    low_rank = len(adapted) * architecture.partition.rank(pair, group) * LOW_RANK_BYTES[dtype]
    norms = 0
    if dtype != "float32" and group != "projector":
        norms = NORM_BYTES * NORMS_PER_BLOCK * _blocks(architecture)[group] * _widths(architecture)[group]
    return group_tokens(architecture, shape)[group] * (BYTES[dtype] * (features + gates) + low_rank + norms)


def packed_bytes(architecture: Architecture, shape: SampleShape, pair: RankPair, dtype: str) -> int:
    """As `activation_bytes`, for one run of a pack."""
    tokens = group_tokens(architecture, shape)
    groups = [group for group in GROUPS if group != "me" or pair.r_me]
    kept = sum(tokens[group] * _packed_token(architecture, group, dtype) for group in groups)
    return kept + logits_bytes(architecture, shape, dtype)


def _packed_token(architecture: Architecture, group: Group, dtype: str) -> int:
    features, adapted = 0, set(architecture.partition.group(group))
    for layer in architecture.partition.every(group):
        leaf = layer.name.rpartition(".")[2]
        features += layer.in_features * (layer in adapted and leaf not in READS_AS_SIBLING)
        features += layer.out_features * (leaf not in ONLY_ADDED)
        if leaf == FUSED:  # rotated queries and keys, beside the product that values are a view of
            features += 2 * layer.out_features // 3
    norms = 0
    if group != "projector":
        norms = NORM_BYTES * NORMS_PER_BLOCK * _blocks(architecture)[group] * _widths(architecture)[group]
    return BYTES[dtype] * features + norms


def _blocks(architecture: Architecture) -> dict[Group, int]:
    return {"me": len(architecture.me_attention), "llm": len(architecture.llm_attention)}


def _widths(architecture: Architecture) -> dict[Group, int]:
    return {"me": architecture.me_width, "llm": architecture.head[0]}


def checkpointed_bytes(architecture: Architecture, shape: SampleShape, pair: RankPair, dtype: str) -> int:
    """As `activation_bytes`, with gradient checkpointing: what enters each block, and one block's own."""
    tokens, blocks, widths = group_tokens(architecture, shape), _blocks(architecture), _widths(architecture)
    entering = BYTES[dtype] * sum(tokens[group] * blocks[group] * widths[group] for group in blocks)
    of_a_block = max(_kept(architecture, shape, pair, group, dtype) // blocks[group] for group in blocks)
    return entering + of_a_block + logits_bytes(architecture, shape, dtype)


def logits_bytes(architecture: Architecture, shape: SampleShape, dtype: str) -> int:
    """Bytes of one sample's logits, at its answer tokens alone."""
    return shape.answers * architecture.head[1] * LOGIT_BYTES[dtype]


def scoring_bytes(architecture: Architecture, shape: SampleShape, dtype: str) -> int:
    """Bytes that scoring one sample takes beside the weights: its widest layers, and its logits."""
    tokens = group_tokens(architecture, shape)
    widest = max(
        tokens[group] * max(layer.in_features + layer.out_features for layer in architecture.partition.every(group))
        for group in GROUPS
        if architecture.partition.every(group)
    )
    # A gated MLP holds two such layers at once.
    return 2 * BYTES[dtype] * widest + logits_bytes(architecture, shape, dtype)


def trained_bytes(architecture: Architecture, pairs: Sequence[RankPair]) -> int:
    """Bytes of adapters, gradients and Adam's state."""
    return adapter_bytes(architecture.partition, pairs)
