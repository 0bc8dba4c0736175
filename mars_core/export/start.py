"""An adapter before its first step: what a tool without per-module ranks is given to continue from."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from mars_core.models.partition import Partition
from mars_core.packing.adapters import PEFT_A, PEFT_B, from_peft, layout_of
from mars_core.packing.saving import save_adapter
from mars_core.ranks import Alpha, Ranks


def save_start(partition: Partition, ranks: Ranks, seed: int, folder: Path, *, model_id: str, alpha: Alpha) -> None:
    """Write an untrained PEFT adapter of `ranks` into an existing folder; with it the model computes what it did.

    Raises:
        ValueError: the ranks do not fit the model.
    """
    layout = layout_of(partition, ranks)
    generator = torch.Generator().manual_seed(seed)
    weights: dict[str, Tensor] = {}
    for slot in layout.slots:  # as PEFT draws them: A from Kaiming's uniform distribution, B zeros
        a = nn.init.kaiming_uniform_(torch.empty(slot.rank, slot.layer.in_features), math.sqrt(5), generator=generator)
        weights[PEFT_A.format(slot.layer.name)] = a
        weights[PEFT_B.format(slot.layer.name)] = torch.zeros(slot.layer.out_features, slot.rank)
    save_adapter(from_peft(weights, layout), partition, ranks, folder, model_id=model_id, alpha=alpha)
