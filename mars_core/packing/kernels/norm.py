"""Root-mean-square norm in a third of the passes over memory that its usual spelling takes.

transformers writes it as seven operations, which autograd doubles; at the widths of an adapter batch they go through
the caches' limits again and again. The arithmetic is the same: in fp32, the weight applied in the input's dtype.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """weight * x / sqrt(mean(x^2) + epsilon) over the last dimension, with `weight` frozen."""
    y: Tensor = _RmsNorm.apply(x, weight, epsilon)  # type: ignore[no-untyped-call]
    return y


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        rows = x.float().reshape(-1, x.shape[-1])
        inverse = torch.linalg.vecdot(rows, rows).div_(x.shape[-1]).add_(epsilon).rsqrt_()[:, None]
        ctx.save_for_backward(rows, inverse, weight)
        normed = rows * inverse
        y: Tensor = normed.mul_(weight) if x.dtype == weight.dtype == normed.dtype else weight * normed.to(x.dtype)
        return y.view(x.shape)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """With n = x / rms and g = weight * dy: dx = (g - n mean(n g)) / rms."""
        rows, inverse, weight = ctx.saved_tensors
        g = (dy * weight).float().reshape(rows.shape)
        share = torch.linalg.vecdot(rows, g)[:, None].mul_(inverse).mul_(inverse).div_(-rows.shape[-1])
        dx = torch.addcmul(g, rows, share).mul_(inverse)
        return dx.to(dy.dtype).view(dy.shape), None, None
