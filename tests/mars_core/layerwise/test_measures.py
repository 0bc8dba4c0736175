"""What methods measure of the layers, against plain PyTorch and NumPy."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch

from mars_core.layerwise.measure_importance import weight_importance
from mars_core.layerwise.measure_variance import explained_variance
from mars_core.layerwise.places import places_of


@pytest.fixture(scope="module")
def layers(small_base):
    return [place.layer for module in ("me", "llm") for place in places_of(small_base.partition, module)][::5]


def test_importance_is_that_of_plain_gradients_and_the_model_stays_frozen(small_base, batch_of, layers):
    steps = [[batch_of(0, 1)], [batch_of(2), batch_of(4)]]
    found = weight_importance(small_base.model, layers, steps)
    assert not any(p.requires_grad or p.grad is not None for p in small_base.model.parameters())
    plain = copy.deepcopy(small_base.model).requires_grad_(True)
    for step in steps:
        total = sum(int((batch["labels"][:, 1:] != -100).sum()) for batch in step)
        for batch in step:
            logits = plain(**{name: value for name, value in batch.items() if name != "labels"}).logits[:, :-1]
            targets = batch["labels"][:, 1:].flatten()
            nats = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets, reduction="sum")
            (nats / total / len(steps)).backward()
    for name in layers:
        weight = plain.get_submodule(name).weight
        assert found[name] == pytest.approx(float((weight * weight.grad).detach().abs().mean()), rel=1e-6)
    with pytest.raises(ValueError, match="there are none: give at least one step"):
        weight_importance(small_base.model, layers, [])


def test_explained_variance_is_that_of_all_inputs_together(small_base, batch_of, layers, monkeypatch):
    from mars_core.layerwise import measure_variance

    monkeypatch.setattr(measure_variance, "ROWS", 40)  # taken in bit by bit
    batches, seen = [batch_of(row) for row in (0, 1, 4, 6)], {name: [] for name in layers}
    handles = [
        small_base.model.get_submodule(name).register_forward_pre_hook(
            lambda _, arguments, name=name: seen[name].append(arguments[0].flatten(0, -2).float().numpy())
        )
        for name in layers
    ]
    for batch in batches:
        with torch.no_grad():
            small_base.model(**{name: value for name, value in batch.items() if name != "labels"})
    for handle in handles:
        handle.remove()
    # As many components as there can be, so that taking them in bit by bit loses nothing.
    found = explained_variance(small_base.model, layers, batches, 10_000)
    for name in layers:
        inputs = np.concatenate(seen[name])
        squares = np.linalg.svd(inputs - inputs.mean(axis=0), compute_uv=False) ** 2
        shares = squares / squares.sum()
        count = min(5, len(found[name]))
        assert count > 0
        np.testing.assert_allclose(found[name][:count], shares[:count], rtol=0.02)
    with pytest.raises(ValueError, match="there are none: give at least one"):
        explained_variance(small_base.model, layers, [], 4)
