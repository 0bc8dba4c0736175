"""The product of an adapted linear layer for all members of a lane, in two forms that are equal but for rounding.

With N rows, merging forms W + 2 B A of each member and multiplies once; it costs 2 r in out operations where
the two low-rank products cost 2 N r (in + out), so it is cheaper for more than a few hundred rows. It needs
the frozen weights in full precision and no dropout. The gradients of A and B are low-rank products in both forms; a
merged weight is formed again for the backward pass rather than kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mars_core.models.lora import ALPHA_PER_RANK
from mars_core.packing.lane import Adapter, Adapters, Dropout

SCALE = float(ALPHA_PER_RANK)


def merging_pays(rows: int, in_features: int, out_features: int) -> bool:
    """Whether forming W + 2 B A costs less than the low-rank products of `rows` rows."""
    return rows * (in_features + out_features) > in_features * out_features


def merged_linear(x: Tensor, weight: Tensor, bias: Tensor | None, adapters: Adapters, anchor: Tensor) -> Tensor:
    """x (W + 2 B A)^T + bias of every member.

    Args:
        x: shape (M, N, in). weight: (out, in), frozen. bias: (out,) or None. adapters: M of them.
        anchor: a scalar that needs a gradient.

    Returns:
        shape (M, N, out). Its backward pass adds to the adapters' gradients.
    """
    y: Tensor = _Merged.apply(x, weight, bias, adapters, anchor)  # type: ignore[no-untyped-call]
    return y


def add_low_rank(y: Tensor, x: Tensor, adapters: Adapters, anchor: Tensor, dropout: Dropout | None) -> Tensor:
    """y + 2 drop(x) A^T B^T of every member, in the dtype of y (as under autocast) with adapters in full precision.

    Args:
        y: the frozen layer's product, shape (M, N, out). x: its input, (M, N, in). The rest as in `merged_linear`.

    Returns:
        shape (M, N, out). Its backward pass adds to the adapters' gradients.
    """
    x = x.to(y.dtype)  # as autocast does: a norm before it may have given fp32
    masks = None if dropout is None else _masks(x, adapters, dropout)
    z: Tensor = _LowRank.apply(y, x, adapters, masks, anchor)  # type: ignore[no-untyped-call]
    return z


class _Merged(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, adapters: Adapters, anchor: Tensor) -> Tensor:
        ctx.adapters = adapters
        ctx.save_for_backward(x, weight)
        merged = _merge(weight, adapters).mT
        return torch.bmm(x, merged) if bias is None else torch.baddbmm(bias, x, merged)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        for adapter, x_one, dy_one in _adapted(ctx.adapters, x, dy):
            _add_gradients(adapter, x_one, functional.linear(x_one, adapter.a), dy_one)
        dx = torch.bmm(dy, _merge(weight, ctx.adapters)) if ctx.needs_input_grad[0] else None
        return dx, None, None, None, None


def _merge(weight: Tensor, adapters: Adapters) -> Tensor:
    merged = weight.new_empty((len(adapters), *weight.shape))
    for adapter, place in zip(adapters, merged, strict=True):
        if adapter is None:
            place.copy_(weight)
        else:
            torch.addmm(weight, adapter.b_transposed.T, adapter.a, alpha=SCALE, out=place)
    return merged


@dataclass(frozen=True)
class Masks:
    """Ones and zeros per member, and the share kept: in half precision 1 / keep is no exact factor for a mask."""

    keep: float
    kept: tuple[Tensor | None, ...]


class _LowRank(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, adapters: Adapters, masks: Masks | None, anchor: Tensor) -> Tensor:
        ctx.adapters, ctx.masks = adapters, masks
        ctx.save_for_backward(x)
        z = y.clone()
        for number, (adapter, x_one) in enumerate(zip(adapters, x, strict=True)):
            if adapter is not None:
                hidden = functional.linear(_masked(x_one, masks, number), adapter.a.to(x.dtype))
                z[number].addmm_(hidden, adapter.b_transposed.to(x.dtype), alpha=SCALE)
        return z

    @staticmethod
    def backward(ctx: Any, dz: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        dx = torch.zeros_like(x) if ctx.needs_input_grad[1] else None
        for number, (adapter, x_one, dz_one) in enumerate(zip(ctx.adapters, x, dz, strict=True)):
            if adapter is None:
                continue
            a = adapter.a.to(x.dtype)
            seen = _masked(x_one, ctx.masks, number)
            dhidden = _add_gradients(adapter, seen, functional.linear(seen, a), dz_one)
            if dx is not None:
                dx[number] = _masked(SCALE * (dhidden @ a), ctx.masks, number)
        return dz if ctx.needs_input_grad[0] else None, dx, None, None, None


def _add_gradients(adapter: Adapter, x: Tensor, hidden: Tensor, dy: Tensor) -> Tensor:
    """dA += 2 (dy B)^T x and dB^T += 2 (x A^T)^T dy, with x (N, in), hidden = x A^T (N, r), dy (N, out); gives dy B."""
    dhidden = functional.linear(dy, adapter.b_transposed.to(dy.dtype))
    _accumulate(adapter.a_grad, dhidden.T, x)
    _accumulate(adapter.b_transposed_grad, hidden.T, dy)
    return dhidden


def _accumulate(gradient: Tensor, left: Tensor, right: Tensor) -> None:
    if gradient.dtype == left.dtype:
        gradient.addmm_(left, right, alpha=SCALE)
    else:
        gradient.add_(left @ right, alpha=SCALE)


def _adapted(adapters: Adapters, *tensors: Tensor) -> Iterator[tuple[Any, ...]]:
    for adapter, *parts in zip(adapters, *tensors, strict=True):
        if adapter is not None:
            yield adapter, *parts


def _masks(x: Tensor, adapters: Adapters, dropout: Dropout) -> Masks:
    keep = 1 - dropout.probability
    kept = tuple(
        None if adapter is None else torch.empty_like(x_one).bernoulli_(keep, generator=generator)
        for adapter, x_one, generator in zip(adapters, x, dropout.generators, strict=True)
    )
    return Masks(keep, kept)


def _masked(x: Tensor, masks: Masks | None, number: int) -> Tensor:
    mask = None if masks is None else masks.kept[number]
    return x if mask is None or masks is None else (x * mask).mul_(1 / masks.keep)
