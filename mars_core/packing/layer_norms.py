"""Gradient norms of every layer's adapter over a run, from the gradients that its passes make anyway.

They are those before clipping. A step that does not reach a layer (the vision tower by text alone) does not count for
it. Averaged over steps they are what HyDRA (Eq. 1) goes by; their squares are the empirical Fisher information.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor

from mars_core.packing.adapters import Layout, Parts


@dataclass(frozen=True)
class LayerNorm:
    """Means over the steps that reached one layer, `steps` of them; with none, the means are 0.

    a, b: norm of the gradient of A and of B. squared: both squared and added up.
    """

    layer: str
    a: float
    b: float
    squared: float
    steps: int


@dataclass(frozen=True)
class NormSums:
    """Sums over steps, shape (4, layers) in double precision: norms of A, norms of B, squares of both, steps."""

    sums: Tensor

    @classmethod
    def of(cls, layout: Layout, device: torch.device) -> NormSums:
        """Before the first step."""
        return cls(torch.zeros((4, len(layout.slots)), dtype=torch.float64, device=device))

    def add(self, layout: Layout, gradient: Parts, reached: Collection[str]) -> None:
        """Add a step's gradient; `reached` are the layers that its passes went through."""
        slots = layout.slots
        parts = [*(slot.a(gradient) for slot in slots), *(slot.b_transposed(gradient) for slot in slots)]
        norms = torch.stack(torch._foreach_norm(parts)).double().view(2, -1)
        counted = torch.tensor([slot.layer.name in reached for slot in slots], device=norms.device)
        rows = torch.stack([*norms, norms.square().sum(dim=0), torch.ones_like(norms[0])])
        self.sums.add_(rows * counted)

    def means(self, layout: Layout) -> tuple[LayerNorm, ...]:
        """Means so far, in the layout's order."""
        steps = self.sums[3].clamp(min=1)
        means = (self.sums[:3] / steps).cpu().T.tolist()
        counts = self.sums[3].long().tolist()
        return tuple(
            LayerNorm(slot.layer.name, a, b, squared, count)
            for slot, (a, b, squared), count in zip(layout.slots, means, counts, strict=True)
        )
