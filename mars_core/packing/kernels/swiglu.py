"""The gate of a language model's MLP, silu(gate) * up, which keeps its two inputs for the backward pass alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, of equal shapes and dtypes (SwiGLU, arXiv 2002.05202)."""
    y: Tensor = _SiluGate.apply(gate, up)  # type: ignore[no-untyped-call]
    return y


class _SiluGate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return functional.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(dy * up, gate), functional.silu(gate).mul_(dy)
