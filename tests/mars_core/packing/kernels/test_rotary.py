from __future__ import annotations

import pytest
import torch
from transformers.models.qwen2 import modeling_qwen2

from mars_core.packing.kernels.rotary import FUNCTION, fits, rotate
from mars_core.packing.patching import _rotary, _rotary_of


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_it_is_transformers_rotation_with_its_gradient(dtype):
    """Equal but for one rounding: ours adds the second product without rounding it first."""
    generator = torch.Generator().manual_seed(0)
    q, k, cos, sin, upstream = (
        torch.randn(shape, generator=generator).to(dtype)
        for shape in ((2, 4, 5, 8), (2, 2, 5, 8), (2, 5, 8), (2, 5, 8), (2, 4, 5, 8))
    )
    ours, theirs = q.clone().requires_grad_(), q.clone().requires_grad_()
    found = rotate(ours, cos.unsqueeze(1), sin.unsqueeze(1))
    expected, _ = modeling_qwen2.apply_rotary_pos_emb(theirs, k, cos, sin)
    found.backward(upstream)
    expected.backward(upstream)
    tolerance = {"rtol": 2**-6, "atol": 2**-6} if dtype == torch.bfloat16 else {"rtol": 1e-6, "atol": 1e-6}
    torch.testing.assert_close(found, expected, **tolerance)
    torch.testing.assert_close(ours.grad, theirs.grad, **tolerance)


def test_its_gradient_is_that_of_finite_differences():
    generator = torch.Generator().manual_seed(1)
    x, cos, sin = (torch.randn((2, 3, 6), generator=generator, dtype=torch.float64) for _ in range(3))
    assert torch.autograd.gradcheck(lambda one: rotate(one, cos, sin), (x.requires_grad_(),))


@pytest.mark.parametrize(
    ("x", "cos", "fitting"),
    [
        (torch.zeros(1, 2, 3, 4), torch.zeros(1, 3, 4), True),
        (torch.zeros(1, 2, 3, 4), torch.zeros(1, 3, 2), False),  # only part of a head is rotated
        (torch.zeros(1, 2, 3, 5), torch.zeros(1, 3, 5), False),
        (torch.zeros(1, 2, 3, 4).half(), torch.zeros(1, 3, 4), False),
        (torch.zeros(1, 2, 3, 4), torch.zeros(1, 3, 4, requires_grad=True), False),
    ],
)
def test_what_it_does_not_do_is_left_to_the_model(x, cos, fitting):
    assert fits(x, cos) is fitting


def test_a_source_is_given_back_when_its_last_user_has_gone():
    """Packs of one family may overlap in threads, in any order."""
    original = getattr(modeling_qwen2, FUNCTION)
    first, second = _rotary_of(modeling_qwen2), _rotary_of(modeling_qwen2)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert getattr(modeling_qwen2, FUNCTION) is not original
    second.__exit__(None, None, None)
    assert getattr(modeling_qwen2, FUNCTION) is original


def test_outside_of_a_pass_a_wired_source_does_what_it_did():
    generator = torch.Generator().manual_seed(2)
    arguments = [
        torch.randn(shape, generator=generator) for shape in ((1, 2, 3, 4), (1, 2, 3, 4), (1, 3, 4), (1, 3, 4))
    ]
    expected = modeling_qwen2.apply_rotary_pos_emb(*arguments, unsqueeze_dim=1)
    with _rotary_of(modeling_qwen2):
        found = modeling_qwen2.apply_rotary_pos_emb(*arguments, unsqueeze_dim=1)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_a_call_of_another_form_stays_the_sources_own():
    """Qwen4's source rotates queries alone, and names what follows."""
    assert _rotary(lambda *given, **named: (given, named), "q", cos="c", sin="s") == (("q",), {"cos": "c", "sin": "s"})
