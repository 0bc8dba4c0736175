"""Both forms of the product against autograd through the plain formula."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mars_core.packing.adapter_batch import Adapter, stack
from mars_core.packing.kernels.linear import add_low_rank, merged_linear, merging_pays

ranks = st.lists(st.integers(0, 5), min_size=1, max_size=4)


def ranks_of(member_ranks):
    return {r for r in member_ranks if r}


def make(member_ranks, rows, width_in, width_out, seed):
    """Input, weight, bias and adapters; those of equal rank are rows of one matrix."""
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def views(row, r):
        return row[: r * width_in].view(r, width_in), row[r * width_in :].view(r, width_out)

    size = width_in + width_out
    flat_buffers = {
        r: (randn(len(member_ranks), r * size), torch.ones(len(member_ranks), r * size).double())
        for r in ranks_of(member_ranks)
    }
    adapters = [
        Adapter(*views(flat_buffers[r][0][number], r), *views(flat_buffers[r][1][number], r), 2.0) if r else None
        for number, r in enumerate(member_ranks)
    ]
    return randn(len(member_ranks), rows, width_in), randn(width_out, width_in), randn(width_out), adapters


@settings(max_examples=40, deadline=None)
@given(ranks, st.integers(1, 6), st.integers(1, 6), st.integers(1, 6), st.booleans(), st.booleans(), st.integers(0, 99))
def test_products_and_gradients_are_those_of_the_formula(member_ranks, rows, width_in, width_out, biased, merged, seed):
    x, weight, bias, adapters = make(member_ranks, rows, width_in, width_out, seed)
    bias = bias if biased else None
    anchor = torch.zeros((), requires_grad=True)
    ours, plain = x.clone().requires_grad_(), x.clone().requires_grad_()
    if merged:
        y = merged_linear(ours, weight, bias, stack(adapters), anchor)
    else:
        y = add_low_rank(torch.nn.functional.linear(ours, weight, bias), ours, stack(adapters), anchor, None)
    leaves = [
        None if a is None else (a.a.clone().requires_grad_(), a.b_transposed.clone().requires_grad_()) for a in adapters
    ]
    expected = torch.stack(
        [
            torch.nn.functional.linear(one, weight, bias) + (0 if leaf is None else 2 * one @ leaf[0].T @ leaf[1])
            for one, leaf in zip(plain, leaves, strict=True)
        ]
    )
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
    upstream = torch.randn(y.shape, generator=torch.Generator().manual_seed(seed), dtype=y.dtype)
    y.backward(upstream)
    expected.backward(upstream)
    torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-10, atol=1e-10)
    for adapter, leaf in zip(adapters, leaves, strict=True):
        if adapter is not None:  # gradients are added to what was there: ones
            torch.testing.assert_close(adapter.a_grad, leaf[0].grad + 1, rtol=1e-10, atol=1e-10)
            torch.testing.assert_close(adapter.b_transposed_grad, leaf[1].grad + 1, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("member_ranks", "together"),
    [([2, 2, 2], [3]), ([2, 2, 3, 3, 3], [2, 3]), ([2, 0, 2], [1, 1]), ([2, 3, 2], [1, 1, 1]), ([0, 0], [])],
)
def test_neighbours_of_equal_rank_are_stacked_as_views(member_ranks, together):
    _, _, _, adapters = make(member_ranks, 1, 4, 5, 0)
    stacks = stack(adapters)
    assert [len(one.a) for one in stacks] == together
    for one in stacks:
        for place, adapter in zip(one.a_grad, adapters[one.runs], strict=True):
            place.fill_(7)
            assert (adapter.a_grad == 7).all()
            assert (adapter.b_transposed_grad == 1).all()


def test_adapters_that_lie_anywhere_stay_by_themselves():
    adapters = [make([2], 1, 4, 5, seed)[3][0] for seed in range(3)]
    assert [len(one.a) for one in stack(adapters)] == [1, 1, 1]


def test_members_that_dropped_out_leave_evenly_spaced_neighbours_together():
    _, _, _, adapters = make([2] * 6, 1, 4, 5, 0)
    assert [len(one.a) for one in stack([adapters[0], adapters[2], adapters[4]])] == [3]
    assert [len(one.a) for one in stack([adapters[0], adapters[1], adapters[4]])] == [2, 1]


def test_an_input_that_needs_no_gradient_still_trains_the_adapters():
    x, weight, _, adapters = make([2, 3], 4, 5, 6, 0)
    for y in (
        merged_linear(x, weight, None, stack(adapters), torch.zeros((), requires_grad=True)),
        add_low_rank(x @ weight.T, x, stack(adapters), torch.zeros((), requires_grad=True), None),
    ):
        before = [adapter.a_grad.clone() for adapter in adapters]
        y.sum().backward()
        assert all(not torch.equal(adapter.a_grad, was) for adapter, was in zip(adapters, before, strict=True))


@pytest.mark.parametrize(("rows", "pays"), [(64, False), (65, True), (758, True), (1, False)])
def test_merging_pays_from_half_the_harmonic_mean_of_the_widths(rows, pays):
    """Per unit of rank, merging costs 2 in out, the low-rank products 2 N (in + out): even at N = 64 for 128 to 128."""
    assert merging_pays(rows, 128, 128) is pays
