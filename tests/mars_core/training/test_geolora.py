"""GeoLoRA: its step against the projected gradient, its cuts, and a run."""

from __future__ import annotations

import copy
import json

import pytest
import torch

from mars_core.models.lora import trainable_parameters
from mars_core.ranks import RankPair
from mars_core.training.finetune import all_logits
from mars_core.training.methods import GeoLora
from mars_core.training.methods.geolora import rank_within, stepped, within_budget
from mars_core.training.recipe import Recipe
from tests.mars_core.training.final_runs import run_of

RECIPE = Recipe(learning_rate=0.3, batch_size=4, warmup_ratio=0.0, dtype="float64")


@pytest.fixture
def point():
    """A product of rank 3 and a gradient by it."""
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.linalg.qr(torch.randn(size, 3, generator=generator, dtype=torch.float64))[0] for size in (8, 11))
    gradient = torch.randn(8, 11, generator=generator, dtype=torch.float64)
    return u, torch.tensor([3.0, 2.0, 0.5], dtype=torch.float64), v, gradient


def test_a_step_is_that_of_the_gradient_projected_on_the_tangent_space(point):
    u, s, v, gradient = point
    a, b, rate = v.T, u * s, 0.01
    found = stepped(a, b, b.T @ gradient, gradient @ v, rate)
    projected = u @ u.T @ gradient + gradient @ v @ v.T - u @ u.T @ gradient @ v @ v.T
    torch.testing.assert_close((found.u * found.values) @ found.v.T, (u * s) @ v.T - rate * projected)
    for basis in (found.u, found.v):
        torch.testing.assert_close(basis.T @ basis, torch.eye(basis.shape[1], dtype=basis.dtype))
    assert len(found.values) == 6  # the rank may double


def test_the_first_step_from_zero_goes_along_the_gradient_within_v(point):
    _, _, v, gradient = point
    found = stepped(v.T, torch.zeros(8, 3, dtype=v.dtype), torch.zeros(3, 11, dtype=v.dtype), gradient @ v, 0.1)
    torch.testing.assert_close((found.u * found.values) @ found.v.T, -0.1 * gradient @ v @ v.T)


def test_cuts_take_no_more_than_they_may():
    values = torch.tensor([4.0, 3.0, 0.3, 0.4 / 3])
    assert rank_within(values, 0.0, 8) == 4
    assert rank_within(values, 0.05, 8) == 3
    assert rank_within(values, 0.1, 8) == 2
    assert rank_within(values, 0.0, 1) == 1
    ranks = within_budget({"x": torch.tensor([5.0, 1.0]), "y": torch.tensor([4.0, 3.0, 2.0])}, {"x": 10, "y": 20}, 60)
    assert ranks == {"x": 1, "y": 2}
    assert within_budget({"x": torch.tensor([5.0, 1.0])}, {"x": 10}, 0) == {"x": 1}


def test_a_run_adapts_ranks_within_the_pairs_parameters_and_saves_a_plain_lora(
    shared_base, base, encoded, batch_of, tmp_path
):
    import functools

    from mars_core.data.collate import collate

    method, pair, batch = GeoLora(RankPair(4, 4)), RankPair(4, 4), batch_of(0, 1, 2)
    wrapped = method.wrap(copy.deepcopy(shared_base.model), shared_base.partition, seed=3, recipe=RECIPE, steps=6)
    before = all_logits(wrapped, batch)
    torch.testing.assert_close(before, all_logits(copy.deepcopy(base.model), batch))  # B is zero
    run = run_of(
        wrapped,
        {
            "train": encoded,
            "collate": functools.partial(collate, pad_token_id=shared_base.pad_token_id),
            "validation": lambda: [(batch_of(0, 3, 6), [encoded[row].sample.task for row in (0, 3, 6)])],
            "recipe": RECIPE,
            "steps": 6,
            "seed": 3,
            "checkpoints": tmp_path / "checkpoints",
            "method": method,
            "partition": shared_base.partition,
        },
    )
    losses = [entry["loss"] for entry in run.history if "loss" in entry]
    assert losses[-1] < losses[0]
    after = all_logits(wrapped, batch)
    assert float((after - before).abs().max()) > 1e-3
    method.save(wrapped, tmp_path / "saved")
    loaded = method.load(copy.deepcopy(base.model), tmp_path / "saved")
    torch.testing.assert_close(all_logits(loaded, batch), after, rtol=0, atol=1e-5)  # PEFT stores in single precision
    ranks = json.loads((tmp_path / "saved" / "adapter_config.json").read_text())["rank_pattern"]
    assert len(set(ranks.values())) > 1
    tensors = [p for name, p in loaded.named_parameters() if "lora_" in name]
    assert sum(tensor.numel() for tensor in tensors) <= trainable_parameters(base.partition, pair)


def test_what_it_cannot_do_is_refused(base):
    with pytest.raises(ValueError, match=r"recipe\.lora_plus_ratio 16 has no meaning for it"):
        GeoLora(RankPair(4, 4)).check(base.partition, Recipe(lora_plus_ratio=16.0))
    with pytest.raises(ValueError, match="tolerance is a share from 0 to below 1, got 1"):
        GeoLora(RankPair(4, 4), 1.0).check(base.partition, Recipe())
