"""Ranks that change during training: the product and Adam's means of a layer, and whole runs."""

from __future__ import annotations

import copy
import functools
import json

import pytest
import torch

from mars_core.data.collate import collate
from mars_core.layerwise.dynamic import DynamicRanks
from mars_core.layerwise.refactor import Factored, with_rank
from mars_core.models.lora import trainable_parameters
from mars_core.ranks import RankPair
from mars_core.training.finetune import all_logits
from mars_core.training.methods import Lora
from mars_core.training.recipe import Recipe
from tests.mars_core.training.final_runs import run_of

RECIPE = Recipe(learning_rate=0.02, batch_size=4, warmup_ratio=0.0, dtype="float64")
PAIR = RankPair(4, 4)


@pytest.fixture
def layer():
    draw = functools.partial(torch.randn, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    a, b, a_mean, b_mean = draw(4, 11), 0.1 * draw(8, 4), draw(4, 11), draw(8, 4)
    return Factored(a, b, a_mean, b_mean, a_mean.square(), b_mean.square())


@pytest.mark.parametrize("rank", [1, 3, 4, 6])
def test_the_product_is_the_nearest_of_its_rank(layer, rank):
    found = with_rank(layer, rank, torch.Generator().manual_seed(0))
    assert found.a.shape == (rank, 11)
    assert found.b.shape == (8, rank)
    u, values, v = torch.linalg.svd(layer.b @ layer.a, full_matrices=False)
    torch.testing.assert_close(found.b @ found.a, u[:, :rank] * values[:rank] @ v[:rank])  # Eckart and Young
    # A keeps its size, on which the learning rate acts.
    torch.testing.assert_close(found.a.square().sum() / rank, layer.a.square().sum() / 4)


def test_adams_means_are_those_of_the_new_factors(layer):
    """The gradient of a function of B A by the new factors, which is linear in the gradient by the old ones."""
    target = torch.randn(8, 11, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    def gradients(a, b):
        a, b = a.clone().requires_grad_(), b.clone().requires_grad_()
        return torch.autograd.grad((b @ a - target).square().sum(), (a, b))

    by_a, by_b = gradients(layer.a, layer.b)
    # All singular values kept, so that the product and with it the function's gradient stay.
    full = with_rank(layer._replace(a_mean=by_a, b_mean=by_b), 5, torch.Generator().manual_seed(0))
    again_a, again_b = gradients(full.a[:4], full.b[:, :4])
    torch.testing.assert_close(full.a_mean[:4], again_a)
    torch.testing.assert_close(full.b_mean[:, :4], again_b)
    assert (full.a_mean[4:] == 0).all()
    torch.testing.assert_close(full.a_square[4], full.a_square[:4].mean(dim=0))


@pytest.fixture
def tuned(shared_base, encoded, batch_of, tmp_path):
    """Train with a method; arguments take the place of the defaults."""

    def run(method, folder="checkpoints", prepare=None, **changes):
        wrapped = method.wrap(copy.deepcopy(shared_base.model), shared_base.partition, seed=3, recipe=RECIPE, steps=8)
        if prepare is not None:
            prepare(wrapped)
        arguments = {
            "train": encoded,
            "collate": functools.partial(collate, pad_token_id=shared_base.pad_token_id),
            "validation": lambda: [(batch_of(0, 3, 6), [encoded[row].sample.task for row in (0, 3, 6)])],
            "recipe": RECIPE,
            "steps": 8,
            "seed": 3,
            "evaluations": 8,
            "checkpoints": tmp_path / folder,
            "method": method,
            "partition": shared_base.partition,
        }
        return wrapped, run_of(wrapped, arguments | changes)

    return run


def test_a_run_moves_rank_within_the_pairs_parameters_and_saves_a_plain_lora(tuned, shared_base, batch_of, tmp_path):
    method = DynamicRanks(PAIR, at=(0.25, 0.5))
    wrapped, run = tuned(method)
    losses = [entry["loss"] for entry in run.history if "loss" in entry]
    assert losses[-1] < losses[0]
    method.save(wrapped, tmp_path / "saved")
    loaded = method.load(copy.deepcopy(shared_base.model), tmp_path / "saved")
    batch = batch_of(0, 1, 2)
    # PEFT stores in single precision.
    torch.testing.assert_close(all_logits(loaded, batch), all_logits(wrapped, batch), rtol=0, atol=1e-5)
    ranks = json.loads((tmp_path / "saved" / "adapter_config.json").read_text())["rank_pattern"]
    assert len(set(ranks.values())) > 1
    tensors = [parameter for name, parameter in loaded.named_parameters() if "lora_" in name]
    assert sum(tensor.numel() for tensor in tensors) <= trainable_parameters(shared_base.partition, PAIR)


@pytest.mark.slow
def test_until_ranks_move_it_is_lora(tuned, shared_base):
    """The room behind the rows in use changes nothing: from the same weights the same ones, to rounding in fp64."""
    fresh = Lora(PAIR).wrap(copy.deepcopy(shared_base.model), shared_base.partition, seed=3, recipe=RECIPE, steps=8)
    start = {name: value.detach().clone() for name, value in fresh.named_parameters() if "lora_" in name}

    def from_start(wrapped):
        own = dict(wrapped.named_parameters())
        with torch.no_grad():
            for name, value in start.items():
                own[name][tuple(slice(size) for size in value.shape)] = value

    plain, _ = tuned(Lora(PAIR), "plain", prepare=from_start)
    roomy, _ = tuned(DynamicRanks(PAIR, at=()), "roomy", prepare=from_start)
    trained = dict(roomy.named_parameters())
    for name, value in plain.named_parameters():
        if "lora_" in name:
            own = trained[name]
            torch.testing.assert_close(own[tuple(slice(size) for size in value.shape)], value, rtol=0, atol=1e-9)
            assert own.count_nonzero() <= value.numel()


def test_a_run_that_was_killed_ends_as_an_undisturbed_one(tuned):
    """Gradients are summed over the kill, which falls between two times of sharing out."""
    method = DynamicRanks(PAIR, at=(0.25, 0.75))
    whole, _ = tuned(method, "whole")

    def kill(step):
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tuned(method, "cut", on_step=kill)
    resumed, _ = tuned(method, "cut")
    for (name, one), (_, other) in zip(whole.named_parameters(), resumed.named_parameters(), strict=True):
        assert torch.equal(one, other), name


def test_what_it_cannot_do_is_refused(shared_base):
    with pytest.raises(ValueError, match="cannot follow 'eva' during training: use one of hydra"):
        DynamicRanks(PAIR, "eva").check(shared_base.partition, RECIPE)
    with pytest.raises(ValueError, match=r"shares of the steps between 0 and 1, got \[1\.5\]"):
        DynamicRanks(PAIR, at=(1.5,)).check(shared_base.partition, RECIPE)
