"""The product of an adapted linear layer for all runs of an adapter batch, in two forms, equal but for rounding.

With N rows, merging forms W + s B A of each run, s = alpha / r, and multiplies once; it costs 2 r in out operations
where the two low-rank products cost 2 N r (in + out), so it is cheaper for more than a few hundred rows. It needs the
frozen weights in full precision and no dropout. The gradients of A and B are low-rank products in both forms; a merged
weight is formed again for the backward pass rather than kept. Runs of equal rank go through one product.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mars_core.packing.adapter_batch import Dropout, Stack, Stacks


def merging_pays(rows: int, in_features: int, out_features: int) -> bool:
    """Whether forming W + s B A costs less than the low-rank products of `rows` rows."""
    return rows * (in_features + out_features) > in_features * out_features


def merged_linear(x: Tensor, weight: Tensor, bias: Tensor | None, stacks: Stacks, anchor: Tensor) -> Tensor:
    """x (W + s B A)^T + bias of every run.

    Args:
        x: shape (M, N, in). weight: (out, in), frozen. bias: (out,) or None. stacks: the runs' adapters.
        anchor: a scalar that needs a gradient.

    Returns:
        shape (M, N, out). Its backward pass adds to the adapters' gradients.
    """
    y: Tensor = _Merged.apply(x, weight, bias, stacks, anchor)  # type: ignore[no-untyped-call]
    return y


def add_low_rank(y: Tensor, x: Tensor, stacks: Stacks, anchor: Tensor, dropout: Dropout | None) -> Tensor:
    """y + s drop(x) A^T B^T of every run, in the dtype of y (as under autocast) with adapters in full precision.

    Args:
        y: the frozen layer's product, shape (M, N, out). x: its input, (M, N, in). The rest as in `merged_linear`.

    Returns:
        shape (M, N, out). Its backward pass adds to the adapters' gradients.
    """
    x = x.to(y.dtype)  # as autocast does: a norm before it may have given fp32
    masks = None if dropout is None else _masks(x, stacks, dropout)
    z: Tensor = _LowRank.apply(y, x, stacks, masks, anchor)  # type: ignore[no-untyped-call]
    return z


class _Merged(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stacks: Stacks, anchor: Tensor) -> Tensor:
        ctx.stacks = stacks
        ctx.save_for_backward(x, weight)
        merged = _merge(weight, stacks, len(x)).mT
        return torch.bmm(x, merged) if bias is None else torch.baddbmm(bias, x, merged)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        for stack in ctx.stacks:
            _add_gradients(stack, x[stack.runs], dy[stack.runs])
        dx = torch.bmm(dy, _merge(weight, ctx.stacks, len(x))) if ctx.needs_input_grad[0] else None
        return dx, None, None, None, None


def _merge(weight: Tensor, stacks: Stacks, width: int) -> Tensor:
    merged = weight.new_empty((width, *weight.shape))
    if not _all_in(stacks, width):
        merged.copy_(weight)
    for stack in stacks:
        place = merged[stack.runs]
        torch.baddbmm(weight.expand_as(place), stack.b_transposed.mT, stack.a, alpha=stack.scale, out=place)
    return merged


def _all_in(stacks: Stacks, width: int) -> bool:
    return sum(len(stack.a) for stack in stacks) == width


@dataclass(frozen=True)
class Masks:
    """Ones and zeros, shape (M, N, in), and the share kept: in half precision 1 / keep is no exact factor of them."""

    keep: float
    kept: Tensor


class _LowRank(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, stacks: Stacks, masks: Masks | None, anchor: Tensor) -> Tensor:
        ctx.stacks, ctx.keep = stacks, None if masks is None else masks.keep
        ctx.save_for_backward(x, None if masks is None else masks.kept)
        z = y.clone()
        for stack in stacks:
            hidden = torch.bmm(_masked(x[stack.runs], masks, stack), stack.a.mT.to(x.dtype))
            z[stack.runs].baddbmm_(hidden, stack.b_transposed.to(x.dtype), alpha=stack.scale)
        return z

    @staticmethod
    def backward(ctx: Any, dz: Tensor) -> tuple[Tensor | None, ...]:
        x, kept = ctx.saved_tensors
        masks = None if kept is None else Masks(ctx.keep, kept)
        dx = None
        if ctx.needs_input_grad[1]:
            dx = torch.empty_like(x) if _all_in(ctx.stacks, len(x)) else torch.zeros_like(x)
        for stack in ctx.stacks:
            dhidden = _add_gradients(stack, _masked(x[stack.runs], masks, stack), dz[stack.runs])
            if dx is not None:
                back = torch.bmm(dhidden.mT, stack.a.to(x.dtype)).mul_(stack.scale)
                dx[stack.runs] = _masked(back, masks, stack)
        return dz if ctx.needs_input_grad[0] else None, dx, None, None, None


def _add_gradients(stack: Stack, x: Tensor, dy: Tensor) -> Tensor:
    """dA += s (dy B)^T x and dB^T += s (x A^T)^T dy, for x (G, N, in) and dy (G, N, out); gives (dy B)^T."""
    hidden = torch.bmm(stack.a.to(x.dtype), x.mT)
    dhidden = torch.bmm(stack.b_transposed.to(dy.dtype), dy.mT)
    _accumulate(stack.a_grad, dhidden, x, stack.scale)
    _accumulate(stack.b_transposed_grad, hidden, dy, stack.scale)
    return dhidden


def _accumulate(gradient: Tensor, left: Tensor, right: Tensor, scale: float) -> None:
    if gradient.dtype == left.dtype:
        gradient.baddbmm_(left, right, alpha=scale)
    else:
        gradient.add_(torch.bmm(left, right), alpha=scale)


def _masks(x: Tensor, stacks: Stacks, dropout: Dropout) -> Masks:
    kept = torch.empty_like(x)
    for stack in stacks:
        for one, generator in zip(kept[stack.runs], dropout.generators[stack.runs], strict=True):
            one.bernoulli_(1 - dropout.probability, generator=generator)
    return Masks(1 - dropout.probability, kept)


def _masked(x: Tensor, masks: Masks | None, stack: Stack) -> Tensor:
    return x if masks is None else (x * masks.kept[stack.runs]).mul_(1 / masks.keep)
