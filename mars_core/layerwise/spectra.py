"""What a trained adapter makes of its rank: singular values of its product B A, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

ENERGY = 0.9
"""Share of the product's squared Frobenius norm that counts as all that matters."""
_A, _B = ".lora_A.weight", ".lora_B.weight"
PREFIX = "base_model.model."


@dataclass(frozen=True)
class LayerSpectrum:
    """A layer's adapter after training.

    norm: Frobenius norm of B A (without its scale). stable_rank: squared Frobenius over squared spectral norm, from 1
    to the rank; 0 for an adapter that is zero. used: singular values, the largest first, that hold `ENERGY` of the
    squared Frobenius norm.
    """

    layer: str
    rank: int
    norm: float
    stable_rank: float
    used: int

    @property
    def utilisation(self) -> float:
        """Share of its rank that it uses: near 1, more rank may help; far below, less would have done."""
        return self.used / self.rank


def spectra(weights: Mapping[str, Tensor]) -> list[LayerSpectrum]:
    """The spectrum of every layer of a LoRA adapter, by the names that PEFT stores its weights under."""
    return [_spectrum(layer, a, b) for layer, a, b in _halves(weights)]


def singular_values(a: Tensor, b: Tensor) -> Tensor:
    """Singular values of B A, the largest first, without making the product.

    Args:
        a: A, shape (rank, in).
        b: B, shape (out, rank).
    """
    _, from_b = torch.linalg.qr(b.double())
    _, from_a = torch.linalg.qr(a.double().T)
    values: Tensor = torch.linalg.svdvals(from_b @ from_a.T)
    return values


def _halves(weights: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor, Tensor]]:
    for name, a in weights.items():
        if name.endswith(_A):
            layer = name.removesuffix(_A)
            yield layer.removeprefix(PREFIX), a, weights[layer + _B]


def _spectrum(layer: str, a: Tensor, b: Tensor) -> LayerSpectrum:
    squares = singular_values(a, b).square()
    total = float(squares.sum())
    if total == 0.0:
        return LayerSpectrum(layer, len(a), 0.0, 0.0, 0)
    used = int((squares.cumsum(0) < ENERGY * total).sum()) + 1
    return LayerSpectrum(layer, len(a), total**0.5, total / float(squares[0]), min(used, len(a)))
