"""Selective tuning: which layers it trains on the demo's backbone, and that nothing else moves."""

import pytest
import torch

from mars_core.demo import demo_backbone_path
from mars_core.models.loading import load_base
from mars_core.training.methods import FullRank, Selective
from mars_core.training.recipe import Recipe
from tasks.settings.baselines import read_baseline


@pytest.fixture(scope="module")
def base():
    return load_base(str(demo_backbone_path()), device=torch.device("cpu"), dtype=torch.float32)


@pytest.mark.parametrize(
    ("name", "count", "pieces"),
    [
        ("top-layers", 14, ("language_model.layers.1.", "language_model.layers.2.")),
        ("last-layer", 7, ("language_model.layers.2.",)),
        ("projector-only", 2, ("multi_modal_projector.",)),
    ],
)
def test_only_the_named_layers_are_trained(base, name, count, pieces):
    method = read_baseline(name).method
    wrapped = method.wrap(base.model, base.partition, seed=0, recipe=Recipe(), steps=1)
    trained = {name: parameter for name, parameter in wrapped.named_parameters() if parameter.requires_grad}
    method.unwrap(wrapped)
    assert len(trained) == count
    assert all(any(piece in name for piece in pieces) for name in trained)
    assert method.trainable_parameters(base.partition) == sum(p.numel() for p in trained.values())


def test_all_layers_are_full_rank_tuning(base):
    every = FullRank().layers(base.partition)
    assert {layer.name for layer in Selective("top", 1.0).layers(base.partition)} < {layer.name for layer in every}
    assert read_baseline("frozen-vision").pair == (0, 16)


def test_a_model_without_such_layers_is_refused(base):
    from dataclasses import replace

    without = replace(base.partition, projector=())
    with pytest.raises(ValueError, match="its projector has no linear layer"):
        Selective("projector").check(without, Recipe())
