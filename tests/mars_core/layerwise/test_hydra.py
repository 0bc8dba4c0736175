"""HyDRA against what its paper publishes, and its constraints on drawn modules."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mars_core.layerwise.budget import CLOSE, Budget, parameters
from mars_core.layerwise.coarse import coarse_ranks, first_rank
from mars_core.layerwise.hydra import Hydra, block_ranks
from mars_core.layerwise.presets import CONFIGS, SETTINGS
from mars_core.layerwise.registry import allocator
from mars_core.layerwise.stages import stages_of

SIZES, STANDARD = (8, 4, 12), 128


def test_the_papers_example():
    """Section IV-C: 24 layers in stages 1-8, 9-12 and 13-24, R_standard 128, step 2."""
    assert first_rank(STANDARD, 24) == 104
    assert (STANDARD * 24 - 8 * 104 - 4 * 106) // 12 == 151  # Eq. 8 at the start: (104, 106, 151)
    assert coarse_ranks(SIZES, STANDARD, step=2) == (124, 126, 131)


def test_other_readings_of_its_iteration_do_not_give_the_published_ranks():
    assert coarse_ranks(SIZES, STANDARD, step=2, increment=1) == (125, 127, 130)
    without_eq_5 = max(
        (first, first + 2, left // 12)
        for first in range(104, 129)
        if (left := STANDARD * 24 - 8 * first - 4 * (first + 2)) // 12 > first + 2
    )
    assert without_eq_5 == (126, 128, 129)


def test_stages_are_found_by_k_means_and_sorted(paper):
    assert stages_of(paper.block_norms(), 3) == (0,) * 8 + (1,) * 4 + (2,) * 12
    assert stages_of([3.0, 1.0, 3.1, 2.0], 3) == (2, 0, 2, 1)  # not neighbours, not in order
    assert stages_of([1.0, 2.0], 1) == (0, 0)
    ranks = Hydra(setting=None).allocate(paper, Budget(STANDARD))
    by_block = {place.block: ranks[place.layer] for place in paper.places}
    assert [by_block[block] for block in range(24)] == [124] * 8 + [126] * 4 + [131] * 12
    assert len(set(ranks.values())) == 3
    assert CLOSE <= parameters(ranks, paper) / Budget(STANDARD).limit(paper) <= 1


TABLE_VI = {  # what each setting adds to a coarse rank, of step 2
    "setting1": {"q": -2, "k": -2, "up": 2},
    "setting2": {"q": -2, "k": -2, "up": 2, "down": 2},
    "setting3": {"q": -2, "k": -2},
    "setting4": {"q": -1, "k": -1, "up": 2},
    "setting5": {"q": -2, "k": -2, "up": 4},
}


def wished(probe, name, coarse):
    """The ranks of a setting as the table has them, whatever they take."""
    return {place.layer: coarse[place.block] + TABLE_VI[name].get(place.component, 0) for place in probe.places}


@pytest.mark.parametrize("name", TABLE_VI)
def test_every_setting_of_table_vi(paper, name):
    assert set(SETTINGS) == set(TABLE_VI)
    shifts = {component: SETTINGS[name].shift(component, 2) for component in ("q", "k", "v", "o", "gate", "up", "down")}
    assert {component: shift for component, shift in shifts.items() if shift} == TABLE_VI[name]
    budget = Budget(STANDARD)
    limit, published = budget.limit(paper), wished(paper, name, block_ranks(paper, budget, 3, 2))
    ranks = allocator("hydra", setting=name).allocate(paper, budget)
    if parameters(published, paper) <= limit:
        assert ranks == published or parameters(published, paper) < CLOSE * limit
        assert all(ranks[layer] >= rank for layer, rank in published.items())
    else:
        lowered = {layer for layer, rank in ranks.items() if rank < published[layer]}
        assert {place.component for place in paper.places if place.layer in lowered} <= {"up", "down"}
    assert parameters(ranks, paper) <= limit


def test_setting1_is_as_published_where_queries_are_not_grouped(paper):
    """Each block loses 2 * 8192 parameters and gains 2 * 7680."""
    ranks = Hydra().allocate(paper, Budget(STANDARD))
    assert ranks == wished(paper, "setting1", block_ranks(paper, Budget(STANDARD), 3, 2))
    first = [ranks[f"model.layers.0.{name}_proj"] for name in ("q", "k", "v", "o", "gate", "up", "down")]
    assert first == [122, 122, 124, 124, 124, 126, 124]


def test_grouped_queries_break_the_budget_and_are_lowered_from_the_smallest_norm_on(grouped):
    """In one stage nothing is left over, so that each block's 2 * (7680 - 4096 - 2560) parameters are too many."""
    budget = Budget(STANDARD)
    ranks = Hydra(stages=1).allocate(grouped, budget)
    assert (
        parameters(wished(grouped, "setting1", [STANDARD] * 24), grouped) == budget.limit(grouped) + 24 * 2048 / 2 * 2
    )
    lowered = [place.block for place in grouped.places if place.component == "up" and ranks[place.layer] < 130]
    assert lowered == list(range(-(-24 * 2048 // 7680)))
    assert {ranks[f"model.layers.{block}.up_proj"] for block in lowered} == {129}
    assert budget.limit(grouped) - 7680 < parameters(ranks, grouped) <= budget.limit(grouped)


def test_the_start_is_clamped_and_raised_where_the_rank_is_small():
    assert first_rank(8, 24) == 1  # Eq. 7 gives -16
    assert coarse_ranks(SIZES, 8, step=2) == (5, 7, 10)


def test_the_step_is_the_papers_or_the_one_that_fits(made):
    probe = made([1.0, 2.0, 3.0], width=64, hidden=64, kv=64)
    assert [Hydra().step_for(probe, Budget(rank)) for rank in (1, 2, 3, 8)] == [1, 1, 2, 2]
    assert Hydra(step=3).step_for(probe, Budget(2)) == 3
    coarse = Hydra(setting=None).allocate(probe, Budget(2))
    assert [coarse[f"model.layers.{block}.v_proj"] for block in range(3)] == [1, 2, 3]
    with pytest.raises(ValueError, match="rank 1 is too small for 3 stages"):
        Hydra().allocate(probe, Budget(1))


def test_configs_of_table_v():
    assert CONFIGS["config1"].at(24, 128) == (128,) * 4 + (64,) * 16 + (128,) * 4
    assert CONFIGS["config2"].at(24, 128) == (256,) * 4 + (128,) * 16 + (256,) * 4
    assert CONFIGS["config3"].at(24, 128) == (64,) * 8 + (128,) * 8 + (256,) * 8
    assert CONFIGS["config4"].at(24, 128) == (124,) * 8 + (126,) * 4 + (131,) * 12
    assert CONFIGS["config3"].at(6, 8) == (4, 4, 8, 8, 16, 16)  # in proportion
    with pytest.raises(ValueError, match="config1 has 3 stages, the module only 2 blocks"):
        CONFIGS["config1"].at(2, 8)


@given(st.lists(st.integers(1, 12), min_size=2, max_size=8), st.integers(1, 128), st.integers(1, 4))
def test_coarse_ranks_are_in_the_solution_space_and_as_high_as_the_steps_allow(sizes, standard, step):
    if standard * sum(sizes) < sum(size * (1 + step * number) for number, size in enumerate(sizes)):
        with pytest.raises(ValueError, match="is too small for"):  # not even 1, 1 + step, ... fits
            coarse_ranks(sizes, standard, step)
        return
    ranks = coarse_ranks(sizes, standard, step)
    assert all(rank >= 1 for rank in ranks)
    assert all(after >= before + step for before, after in pairwise(ranks))  # Eq. 5
    total = sum(rank * size for rank, size in zip(ranks, sizes, strict=True))
    assert standard * sum(sizes) - sizes[-1] < total <= standard * sum(sizes)  # Eq. 6, and nothing left over
    raised = [rank + step for rank in ranks[:-1]]
    left = standard * sum(sizes) - sum(rank * size for rank, size in zip(raised, sizes, strict=False))
    assert left // sizes[-1] < raised[-1] + step


@settings(max_examples=60)
@given(
    st.lists(st.floats(0.01, 10.0), min_size=3, max_size=12, unique=True),
    st.integers(3, 48),
    st.sampled_from(sorted(SETTINGS)),
    st.integers(8, 64),
)
def test_fine_ranks_never_break_the_budget(made, norms, rank, setting, kv):
    probe, budget = made(norms, width=64, hidden=200, kv=kv), Budget(min(rank, kv))
    ranks = allocator("hydra", stages=2, step=2, setting=setting).allocate(probe, budget)
    limit, spent = budget.limit(probe), parameters(ranks, probe)
    widths = {place.layer: place.width for place in probe.places}
    assert all(1 <= own <= widths[layer] for layer, own in ranks.items())
    assert spent <= limit
    room = [place.cost for place in probe.places if ranks[place.layer] < place.width]
    assert spent >= CLOSE * limit or not room or limit - spent < min(room)


def test_what_cannot_be_done_is_said(made, paper):
    with pytest.raises(ValueError, match="5 stages of 2 blocks are not possible: use 1 to 2 stages"):
        Hydra(stages=5).allocate(made([1.0, 2.0]), Budget(8))
    with pytest.raises(ValueError, match=r"rank 2 is too small for 3 stages .* use a rank of 4 or more"):
        coarse_ranks(SIZES, 2)
    with pytest.raises(ValueError, match="different gradient norms, too few for 3 stages"):
        Hydra().allocate(made([1.0] * 8), Budget(8))
    with pytest.raises(ValueError, match="is not finite: probe at a lower learning rate"):
        stages_of([1.0, float("nan"), 2.0], 2)
    with pytest.raises(ValueError, match="a budget of rank 0 leaves layers without a rank"):
        Budget(0)
    with pytest.raises(ValueError, match=r"rank 4096 is above the width 2048 of layer"):
        Budget(4096).limit(paper)
    with pytest.raises(ValueError, match="stages and step are 1 or more, got 0 and 2"):
        Hydra(stages=0)
    with pytest.raises(ValueError, match="there is no setting 'setting9'"):
        allocator("hydra", setting="setting9")
    with pytest.raises(ValueError, match="there is no method 'hydro'"):
        allocator("hydro")


def test_a_module_without_the_components_of_a_setting_is_named(made):
    probe = made([1.0, 2.0, 3.0])
    fused = {"q": "qkv", "k": "qkv"}
    places = [one.place._replace(component=fused.get(one.place.component, one.place.component)) for one in probe.layers]
    layers = tuple(type(one)(place, 1.0, 1.0) for one, place in zip(probe.layers, places, strict=True))
    with pytest.raises(ValueError, match=r"the llm has no q, k: its layers are .*qkv.*Use coarse ranks"):
        Hydra(stages=2).fine(type(probe)("llm", layers), Budget(8), [8, 8, 8])
