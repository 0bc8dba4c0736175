"""Rotary position embedding in three passes over memory.

transformers rotates halves by cutting and joining them, whose derivative fills and adds whole tensors. The arithmetic
is the same: y = x cos + rotate_half(x) sin (RoFormer, Eq. 34, in the two-halves form).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

FUNCTION = "apply_rotary_pos_emb"
"""The name that transformers gives its own, in the module of every language model that has one."""


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x cos + rotate_half(x) sin over the last, even dimension; `cos` and `sin` broadcast and get no gradient."""
    y: Tensor = _Rotate.apply(x, cos, sin)  # type: ignore[no-untyped-call]
    return y


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        half = x.shape[-1] // 2
        y = x * cos
        y[..., :half].addcmul_(x[..., half:], sin[..., :half], value=-1)
        y[..., half:].addcmul_(x[..., :half], sin[..., half:])
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        half = dy.shape[-1] // 2
        dx = dy * cos
        dx[..., :half].addcmul_(dy[..., half:], sin[..., half:])
        dx[..., half:].addcmul_(dy[..., :half], sin[..., :half], value=-1)
        return dx, None, None


def fits(x: Tensor, cos: Tensor) -> bool:
    """Whether `rotate` takes these: one dtype, the whole of an even last dimension, no gradient for the table."""
    return x.dtype == cos.dtype and x.shape[-1] == cos.shape[-1] and x.shape[-1] % 2 == 0 and not cos.requires_grad
