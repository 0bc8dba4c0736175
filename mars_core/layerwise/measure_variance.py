"""Explained variance of layer inputs (EVA, Paischer et al. 2024), by PEFT's incremental principal components."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from peft.utils.incremental_pca import IncrementalPCA
from torch import Tensor, nn

ROWS = 512
"""Inputs (tokens or patches) that are taken in together, at least."""


def explained_variance(
    model: nn.Module, layers: Sequence[str], batches: Iterable[Mapping[str, Tensor]], components: int
) -> dict[str, tuple[float, ...]]:
    """Share of the variance of each layer's input that its principal components explain, the largest first.

    Args:
        model: The base model.
        layers: Paths of linear layers.
        batches: One sequence each, so that there is no padding among the inputs.
        components: How many are wanted; fewer where a layer's input is narrower or too few inputs were seen.

    Raises:
        ValueError: there are no batches.
    """
    found = {name: _Components(min(components, _width(model, name))) for name in layers}
    handles = [model.get_submodule(name).register_forward_pre_hook(one.take) for name, one in found.items()]
    seen = False
    try:
        with torch.no_grad():
            for batch in batches:
                seen = True
                model(**{key: value for key, value in batch.items() if key != "labels"}, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    if not seen:
        raise ValueError("explained variance is measured over samples, and there are none: give at least one")
    return {name: one.shares() for name, one in found.items()}


def _width(model: nn.Module, name: str) -> int:
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    return layer.in_features


class _Components:
    """Principal components of the inputs of one layer so far."""

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        self.waiting: list[Tensor] = []
        self.fitted: IncrementalPCA | None = None

    def take(self, _: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        """Take the inputs of one forward pass."""
        self.waiting.append(arguments[0].detach().flatten(0, -2).float())
        if sum(map(len, self.waiting)) >= max(ROWS, self.wanted):
            self._fit()

    def shares(self) -> tuple[float, ...]:
        """The shares, with what is still waiting where it is enough to be taken in."""
        rows = sum(map(len, self.waiting))
        if rows >= self.wanted or (self.fitted is None and rows > 1):
            self.wanted = min(self.wanted, rows)
            self._fit()
        if self.fitted is None:
            return ()
        return tuple(float(share) for share in self.fitted.explained_variance_ratio_)

    def _fit(self) -> None:
        if self.fitted is None:
            self.fitted = IncrementalPCA(n_components=self.wanted)
        self.fitted.partial_fit(torch.cat(self.waiting))
        self.waiting.clear()
