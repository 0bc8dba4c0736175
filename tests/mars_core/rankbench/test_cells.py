"""The plan of RankBench against what it promises."""

from __future__ import annotations

import pytest

from mars_core.rankbench.blocks import CALIBRATION_SEEDS, JUDGE_SEEDS, RATES_SEED, Block, blocks_of, runs_of
from mars_core.rankbench.cells import CELLS, MANY_RANKS, RATES, cell_named
from mars_core.ranks import RankPair


def test_cells_cover_backbones_tasks_and_sizes():
    grid = [cell for cell in CELLS if cell.ranks != MANY_RANKS]
    assert len(grid) >= 12
    assert len({cell.name for cell in CELLS}) == len(CELLS)
    for role in ("develop", "verdict"):
        own = [cell for cell in grid if cell.role == role]
        assert {cell.backbone for cell in own} == {"even", "llm", "vision"}
        assert {cell.task for cell in own} == {"caption", "attribute", "choice", "detail"}
        assert len({cell.samples for cell in own}) == 2


def test_a_cell_has_sixteen_pairs_and_rank_zero_on_either_side():
    pairs = cell_named("even-detail-512").pairs
    assert len([pair for pair in pairs if 0 not in pair]) == 16
    assert {pair.r_llm for pair in pairs if pair.r_me == 0} == {4, 16}
    assert {pair.r_me for pair in pairs if pair.r_llm == 0} == {4, 16}
    assert sum(0 not in pair for pair in cell_named("even-detail-512-64pairs").pairs) == 64


def test_no_run_that_judges_shares_a_seed_with_one_that_is_selected_on():
    selected = {RATES_SEED}.union(*CALIBRATION_SEEDS.values())
    assert not selected.intersection(*[set().union(*JUDGE_SEEDS.values())])
    assert len(JUDGE_SEEDS["constant"]) >= 4


def test_pairs_have_every_rate_and_are_judged_under_both_alpha_rules():
    cell = cell_named("vision-detail-512")
    for rule, pairs in (("constant", cell.pairs), ("2r", cell.subset)):
        rates = Block(cell, "rates", rule, RATES_SEED)
        assert {rate for _, rate in runs_of(rates, {})} == set(RATES)
        assert {pair for pair, _ in runs_of(rates, {})} == set(pairs)
        judged = [block for block in blocks_of(cell) if (block.kind, block.rule) == ("judge", rule)]
        assert [block.seed for block in judged] == list(JUDGE_SEEDS[rule])
        assert all(set(block.pairs) == set(cell.pairs) for block in judged)


def test_runs_that_judge_have_their_pairs_best_rate():
    cell = cell_named("even-detail-512")
    best = dict.fromkeys(cell.pairs, 1e-3) | {RankPair(1, 1): 4e-3}
    assert dict(runs_of(Block(cell, "judge", "2r", 10), best)) == best


def test_an_unknown_cell_is_refused_with_those_that_there_are():
    with pytest.raises(ValueError, match="no cell 'x': it has even-detail-512"):
        cell_named("x")
