"""Selective tuning: own weights of some layers alone: top layers, the last one, the projector (arXiv 2503.04543)."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from mars_core.models.partition import LinearLayer, Partition
from mars_core.training.methods.full_rank import FullRank

Where = Literal["top", "last", "projector"]
_BLOCK = re.compile(r"\.(\d+)\.")


@dataclass(frozen=True)
class Selective(FullRank):
    """Full-rank tuning of the LLM's upper blocks, its last one, or the projector; the rest stays as it is.

    where: which layers. share: of the LLM's blocks that `top` trains, counted from the output, at least one.
    """

    where: Where = "top"
    share: float = 0.5

    def layers(self, partition: Partition) -> list[LinearLayer]:
        """Layers whose weights are trained.

        Raises:
            ValueError: the model has no such layers.
        """
        if self.where == "projector":
            return self._some(list(partition.group("projector")), "its projector has no linear layer that is adapted")
        blocks = {layer.name: _block_of(layer) for layer in partition.group("llm")}
        numbers = sorted({number for number in blocks.values() if number is not None})
        kept = numbers[-1:] if self.where == "last" else numbers[-max(1, round(self.share * len(numbers))) :]
        found = [layer for layer in partition.group("llm") if blocks[layer.name] in kept]
        return self._some(found, "its LLM has no numbered blocks")

    def _some(self, layers: list[LinearLayer], why_not: str) -> list[LinearLayer]:
        if not layers:
            raise ValueError(f"selective tuning of {self.where!r} does not fit this model: {why_not}")
        return layers


def _block_of(layer: LinearLayer) -> int | None:
    """Number of the block that a layer lies in: the first number in its path."""
    found = _BLOCK.search(layer.name)
    return int(found[1]) if found else None
