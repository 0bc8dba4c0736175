"""A pair's adapter before its first step: what a tool without per-module ranks is given to continue from."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from mars_core.models.lora import RankPair
from mars_core.models.partition import Partition
from mars_core.packing.adapters import Layout, layout_of
from mars_core.packing.export import save_adapter


def save_start(partition: Partition, pair: RankPair, seed: int, folder: Path, *, model_id: str) -> None:
    """Write an untrained PEFT adapter of `pair` into an existing folder; with it the model computes what it did.

    Raises:
        ValueError: the ranks do not fit the model.
    """
    save_adapter(untrained(layout_of(partition, pair), seed), partition, pair, folder, model_id=model_id)


def untrained(layout: Layout, seed: int) -> Tensor:
    """Flat weights as PEFT draws them: A from Kaiming's uniform distribution, B zeros."""
    generator = torch.Generator().manual_seed(seed)
    flat = torch.zeros(layout.size)
    for slot in layout.slots:
        nn.init.kaiming_uniform_(slot.a(flat), a=math.sqrt(5), generator=generator)
    return flat
