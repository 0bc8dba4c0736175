from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from mars_core.packing.kernels.swiglu import swiglu


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_it_is_the_formula_with_its_gradients(dtype):
    """The same operations as autograd's; in bf16 a product more is rounded."""
    generator = torch.Generator().manual_seed(0)
    gate, up, upstream = (torch.randn((3, 7), generator=generator).to(dtype) for _ in range(3))
    ours = gate.clone().requires_grad_(), up.clone().requires_grad_()
    theirs = gate.clone().requires_grad_(), up.clone().requires_grad_()
    found, expected = swiglu(*ours), functional.silu(theirs[0]) * theirs[1]
    found.backward(upstream)
    expected.backward(upstream)
    tolerance = {"rtol": 2**-6, "atol": 2**-6} if dtype == torch.bfloat16 else {"rtol": 1e-6, "atol": 1e-6}
    for one, other in ((found, expected), *((a.grad, b.grad) for a, b in zip(ours, theirs, strict=True))):
        torch.testing.assert_close(one, other, **tolerance)


def test_its_gradients_are_those_of_finite_differences():
    generator = torch.Generator().manual_seed(1)
    inputs = tuple(torch.randn((2, 5), generator=generator, dtype=torch.float64).requires_grad_() for _ in range(2))
    assert torch.autograd.gradcheck(swiglu, inputs)
