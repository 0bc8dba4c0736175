"""Rivals: each against its own rule written out, all within one budget."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mars_core.layerwise.budget import CLOSE, Budget, apportion, parameters
from mars_core.layerwise.places import component_of
from mars_core.layerwise.probe import probe_table, read_probes
from mars_core.layerwise.registry import METHODS, allocator
from mars_core.layerwise.spectra import singular_values, spectra

NARROW = {"width": 48, "hidden": 120, "kv": 24}


@pytest.fixture(scope="module")
def draw():
    return np.random.default_rng(0)


@pytest.fixture(scope="module")
def full(made, draw):
    """A probe with every column."""
    return made(
        [0.3, 0.9, 0.4, 1.2],
        **NARROW,
        factors={"q": 0.5, "up": 1.5},
        fisher=lambda block, _: 0.1 + block,
        importance=lambda block, component: (1 + block) * (2 if component == "up" else 1),
        explained_variance=lambda *_: tuple(map(float, sorted(draw.dirichlet(np.full(20, 0.3)), reverse=True))),
        triplets=lambda block, _: tuple(map(float, draw.exponential(1 + block, 12))),
    )


@pytest.mark.parametrize("name", METHODS)
def test_every_method_uses_the_budget_and_no_more(full, name):
    budget = Budget(8)
    ranks = allocator(name, stages=2, step=2).allocate(full, budget)
    limit, spent = budget.limit(full), parameters(ranks, full)
    widths = {place.layer: place.width for place in full.places}
    assert ranks.keys() == widths.keys()
    assert all(1 <= rank <= widths[layer] for layer, rank in ranks.items())
    room = [place.cost for place in full.places if ranks[place.layer] < place.width]
    assert spent <= limit
    assert spent >= CLOSE * limit or limit - spent < min(room)


def test_uniform_is_one_rank(full):
    assert set(allocator("uniform").allocate(full, Budget(5)).values()) == {5}


def by_place(probe, ranks):
    return {(place.block, place.component): ranks[place.layer] for place in probe.places}


def test_eva_is_pefts_redistribution_where_all_layers_cost_the_same(made, draw):
    """PEFT counts the components of the largest explained variance; layers that it leaves without any keep one here."""
    shares = {}

    def spectrum(block, component):
        shares[block, component] = tuple(sorted(draw.dirichlet(np.full(16, 0.8)), reverse=True))
        return shares[block, component]

    probe, rank = made([1.0, 2.0], width=64, hidden=64, kv=64, explained_variance=spectrum), 4
    kept = [(layer, share) for layer, own in shares.items() for share in own[: 2 * rank]]
    best = sorted(kept, key=lambda unit: -unit[1])[: rank * len(shares)]
    expected = Counter(layer for layer, _ in best)
    assert len(expected) == len(shares)
    assert by_place(probe, allocator("eva").allocate(probe, Budget(rank))) == expected


def test_adalora_keeps_the_most_important_triplets_of_all_layers(made, draw):
    importance = {}

    def triplets(block, component):
        importance[block, component] = tuple(draw.permutation(np.arange(12.0)) + block + draw.random(12))
        return importance[block, component]

    probe, rank = made([1.0, 2.0, 3.0], width=64, hidden=64, kv=64, triplets=triplets), 6
    threshold = sorted((s for own in importance.values() for s in own), reverse=True)[rank * len(importance) - 1]
    expected = {layer: sum(score >= threshold for score in own) for layer, own in importance.items()}
    assert all(expected.values())
    assert by_place(probe, allocator("adalora").allocate(probe, Budget(rank))) == expected


def test_gora_and_fisher_are_proportional_to_what_they_measure(made):
    probe = made(
        [1.0, 2.0],
        width=512,
        hidden=1024,
        kv=512,
        importance=lambda block, _: 1.0 + block,
        fisher=lambda _, component: 3.0 if component == "v" else 1.0,
    )
    gora, places = allocator("gradient").allocate(probe, Budget(24)), {place.layer: place for place in probe.places}
    scale = {layer: rank / ((1 + places[layer].block) / math.sqrt(places[layer].cost)) for layer, rank in gora.items()}
    assert max(scale.values()) / min(scale.values()) < 1.15  # rounding to integers alone
    fisher = allocator("fisher").allocate(probe, Budget(24))
    assert {rank for layer, rank in fisher.items() if places[layer].component == "v"} == {48}  # 2 r at most
    others = [rank for layer, rank in fisher.items() if places[layer].component != "v"]
    assert max(others) - min(others) <= 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1e6), min_size=21, max_size=21).filter(any), st.integers(1, 24), st.integers(1, 4))
def test_apportioned_ranks_take_the_budget_whatever_the_proportion(made, weights, rank, most):
    probe, budget = made([1.0, 2.0, 3.0], **NARROW), Budget(rank)
    wanted = {place.layer: weight for place, weight in zip(probe.places, weights, strict=True)}
    ranks = apportion(wanted, probe, budget, most=most * rank)
    limit, spent = budget.limit(probe), parameters(ranks, probe)
    assert spent <= limit
    assert all(1 <= own <= place.width for own, place in zip(ranks.values(), probe.places, strict=True))
    room = [place.cost for place in probe.places if ranks[place.layer] < place.width]
    assert spent >= CLOSE * limit or limit - spent < min(room)


def test_what_no_single_unit_can_use_up_is_exchanged(made):
    """Widths of the demo's LLM: costs are multiples of 64, and 128 parameters would be left."""
    probe, budget = made([1.0, 2.0, 3.0], width=128, hidden=256, kv=64), Budget(4)
    ranks = allocator("hydra").allocate(probe, budget)
    assert budget.limit(probe) - parameters(ranks, probe) < 0.005 * budget.limit(probe)
    assert min(ranks.values()) >= 1


def test_what_a_method_misses_is_said(made):
    probe = made([1.0, 2.0, 3.0])
    for name, column in {"eva": "explained_variance", "adalora": "triplets", "gradient": "importance"}.items():
        with pytest.raises(ValueError, match=rf"the probe holds no {column} of layer model.layers.0.q_proj"):
            allocator(name).allocate(probe, Budget(8))
    nothing = probe.with_values(fisher=dict.fromkeys((place.layer for place in probe.places), 0.0))
    with pytest.raises(ValueError, match="the layers of the llm cannot be told apart"):
        allocator("fisher").allocate(nothing, Budget(8))


def test_a_probe_is_stored_as_a_table(full, made):
    vision = made([1.0, 2.0], **NARROW)
    vision = type(vision)("me", vision.layers)
    assert read_probes(probe_table([full, vision])) == {"llm": full, "me": vision}
    assert full.blocks == 4
    expected = [norm * (0.5 + 1.5 + 5) / 7 for norm in (0.3, 0.9, 0.4, 1.2)]
    assert full.block_norms() == pytest.approx(expected)
    assert full.component_norms()["q"] == pytest.approx(0.5 * (0.3 + 0.9 + 0.4 + 1.2) / 4)


@pytest.mark.parametrize(
    ("path", "component"),
    [
        ("model.language_model.layers.3.self_attn.q_proj", "q"),
        ("vision_model.encoder.layers.0.self_attn.out_proj", "o"),
        ("vision_model.encoder.layers.0.mlp.fc1", "up"),
        ("visual.blocks.7.mlp.linear_fc2", "down"),
        ("visual.blocks.7.attn.qkv", "qkv"),
        ("model.layers.1.mlp.gate_up_proj", "gate_up"),
        ("model.layers.1.mlp.odd", "odd"),
    ],
)
def test_components_by_their_names(path, component):
    assert component_of(path) == component


def test_spectra_are_those_of_the_product():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(4, 9, generator=generator), torch.randn(7, 4, generator=generator)
    torch.testing.assert_close(singular_values(a, b), torch.linalg.svdvals(b.double() @ a.double())[:4])
    # One direction of four: B's columns are multiples of one vector.
    flat = torch.outer(torch.arange(1.0, 8.0), torch.tensor([1.0, 2.0, 0.5, 1.0]))
    prefix = "base_model.model.layers.0.q_proj.lora_"
    one, zero = (
        spectra({f"{prefix}A.weight": a, f"{prefix}B.weight": weight})[0] for weight in (flat, torch.zeros(7, 4))
    )
    assert (one.layer, one.rank, one.used) == ("layers.0.q_proj", 4, 1)
    assert one.stable_rank == pytest.approx(1.0)
    assert one.utilisation == 0.25
    assert (zero.used, zero.stable_rank) == (0, 0.0)
    diagonal = spectra({f"{prefix}A.weight": torch.eye(4), f"{prefix}B.weight": torch.eye(4)})[0]
    assert (diagonal.used, diagonal.stable_rank, diagonal.utilisation) == (4, pytest.approx(4.0), 1.0)
