"""Describe a base checkpoint."""

from __future__ import annotations

from typing import Any

from mars_core.models.partition import GROUPS
from tasks.resources import base_model


def inspect_model(model: str, ranks: list[int]) -> dict[str, Any]:
    """Partition, LoRA targets and trainable parameters of a checkpoint, as JSON values."""
    base = base_model(model, "cpu", "float32")
    groups = {
        group: {
            "layers": len(base.partition.group(group)),
            "largest_rank": base.partition.largest_rank(group) if base.partition.group(group) else 0,
            "parameters_per_rank": base.partition.parameters_per_rank(group),
            "lora_parameters": {str(rank): rank * base.partition.parameters_per_rank(group) for rank in ranks},
            "targets": [layer.name for layer in base.partition.group(group)],
        }
        for group in GROUPS
    }
    return {
        "model": model,
        "model_type": base.model.config.model_type,
        "parameters": sum(parameter.numel() for parameter in base.model.parameters()),
        "groups": groups,
        "excluded": list(base.partition.excluded),
    }
