"""Memory of a model and its runs, from shapes alone."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from mars_core.models.lora import trainable_parameters
from mars_core.models.partition import GROUPS, Partition
from mars_core.ranks import RankPair

# Weights, gradient and Adam's two moments, each in 4 bytes (adapters are kept in full precision).
BYTES_PER_TRAINABLE = 16
# NF4 with double quantization: 4 bits, a byte of scale per 64 weights, 4 bytes per 256 scales (QLoRA, section 3).
BYTES_PER_NF4_WEIGHT = 0.5 + 1 / 64 + 4 / (64 * 256)


def frozen_bytes(model: nn.Module, partition: Partition) -> dict[str, int]:
    """Bytes of the frozen weights by how they are kept; in `four_bit` what is not a linear layer stays in bfloat16."""
    weights = sum(weight.numel() for weight in model.parameters())
    linear = sum(layer.in_features * layer.out_features for group in GROUPS for layer in partition.every(group))
    four_bit = linear * BYTES_PER_NF4_WEIGHT + 2 * (weights - linear)
    return {"float32": 4 * weights, "bfloat16": 2 * weights, "four_bit": round(four_bit)}


def adapter_bytes(partition: Partition, pairs: Sequence[RankPair]) -> int:
    """Bytes of the runs' adapters with gradients and Adam's state."""
    return sum(trainable_parameters(partition, pair) for pair in pairs) * BYTES_PER_TRAINABLE
