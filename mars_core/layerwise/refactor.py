"""Give a LoRA in training another rank: its product stays, or loses its smallest singular values."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Factored(NamedTuple):
    """A LoRA layer in training. a: shape (r, in). b: shape (out, r). a_mean, b_mean, a_square, b_square: Adam's running
    means of gradients and of their squares, shaped as A and B."""

    a: Tensor
    b: Tensor
    a_mean: Tensor
    b_mean: Tensor
    a_square: Tensor
    b_square: Tensor

    @property
    def rank(self) -> int:
        """Rows of A."""
        return len(self.a)


def with_rank(layer: Factored, rank: int, generator: torch.Generator) -> Factored:
    """The layer with another rank.

    B A = U S V' by singular values. The new A is size * V', the new B is U S / size, where size is the root mean square
    norm of A's rows: A and B keep their proportions, on which the learning rate acts. With A' = T A the gradients are
    T^-T dA and dB T', and so are their running means; running mean squares follow as if the gradients of single
    entries were uncorrelated. New rows of A are random, of the same norm, and their columns of B zero, so that the
    product stays; their mean squares are those of an average row, so that their first steps are no larger than
    others'.

    Args:
        layer: as it is.
        rank: the new one, 1 to its width.
        generator: of the new rows.
    """
    kept = _reduced(layer, min(rank, layer.rank))
    return kept if rank == kept.rank else _grown(kept, rank - kept.rank, generator)


def _reduced(layer: Factored, rank: int) -> Factored:
    own = Factored(*(tensor.double() for tensor in layer))
    size = torch.linalg.matrix_norm(own.a) / own.rank**0.5
    b_basis, b_upper = torch.linalg.qr(own.b)
    a_basis, a_upper = torch.linalg.qr(own.a.T)
    u, values, v = torch.linalg.svd(b_upper @ a_upper.T)
    for_a = (v @ a_upper / size)[:rank]  # T^-T
    for_b = (torch.linalg.pinv(a_upper) @ v.T * size)[:, :rank]  # T'
    found = Factored(
        a=size * v[:rank] @ a_basis.T,
        b=b_basis @ u[:, :rank] * (values[:rank] / size),
        a_mean=for_a @ own.a_mean,
        b_mean=own.b_mean @ for_b,
        a_square=for_a.square() @ own.a_square,
        b_square=own.b_square @ for_b.square(),
    )
    return Factored(*(new.to(old) for new, old in zip(found, layer, strict=True)))


def _grown(layer: Factored, more: int, generator: torch.Generator) -> Factored:
    size = torch.linalg.vector_norm(layer.a, dim=1).square().mean().sqrt()
    drawn = torch.randn(more, layer.a.shape[1], generator=generator, dtype=torch.float64).to(layer.a)
    rows = size * drawn / torch.linalg.vector_norm(drawn, dim=1, keepdim=True)
    columns = torch.zeros_like(layer.b[:, :1]).expand(-1, more)
    return Factored(
        a=torch.cat([layer.a, rows]),
        b=torch.cat([layer.b, columns], dim=1),
        a_mean=torch.cat([layer.a_mean, torch.zeros_like(rows)]),
        b_mean=torch.cat([layer.b_mean, columns], dim=1),
        a_square=torch.cat([layer.a_square, layer.a_square.mean(dim=0, keepdim=True).expand(more, -1)]),
        b_square=torch.cat([layer.b_square, layer.b_square.mean(dim=1, keepdim=True).expand(-1, more)], dim=1),
    )
