from __future__ import annotations

import pytest
import torch
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

from mars_core.packing.kernels.norm import rms_norm


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_it_is_transformers_norm_with_its_gradient(dtype):
    """Both compute in fp32: sums in another order differ by a few units of 6e-8, in bf16 by its own last bit."""
    generator = torch.Generator().manual_seed(0)
    norm = Qwen2RMSNorm(24).to(dtype)
    norm.weight.requires_grad_(False).copy_(torch.randn(24, generator=generator))
    x = torch.randn(2, 5, 24, generator=generator).to(dtype)
    upstream = torch.randn(2, 5, 24, generator=generator).to(dtype)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    found, expected = rms_norm(ours, norm.weight, norm.variance_epsilon), norm(theirs)
    found.backward(upstream)
    expected.backward(upstream)
    tolerance = {"rtol": 2**-7, "atol": 2**-7} if dtype == torch.bfloat16 else {"rtol": 1e-6, "atol": 1e-6}
    torch.testing.assert_close(found, expected, **tolerance)
    torch.testing.assert_close(ours.grad, theirs.grad, **tolerance)
    assert found.dtype == ours.grad.dtype == dtype


def test_its_gradient_is_that_of_finite_differences():
    """The inner arithmetic is fp32, so differences are taken over steps of 1e-2: accurate to about 1e-3."""
    generator = torch.Generator().manual_seed(1)
    x, weight, direction = (torch.randn(6, generator=generator, dtype=torch.float64) for _ in range(3))
    x.requires_grad_()
    (rms_norm(x, weight, 1e-6) * direction).sum().backward()
    for place in range(6):
        step = torch.zeros(6, dtype=torch.float64)
        step[place] = 1e-2
        ahead, behind = ((rms_norm(x.detach() + s, weight, 1e-6) * direction).sum() for s in (step, -step))
        assert float(x.grad[place]) == pytest.approx(float(ahead - behind) / 2e-2, rel=1e-2, abs=1e-3)
