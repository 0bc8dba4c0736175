"""What runs share: a table whose runs share no seed or no step must still tell the pairs apart."""

import numpy as np
import pandas as pd
import pytest

from mars_core.surface import fit_surface, read_curves
from mars_core.surface.noise import spread_of_runs

WORSE = 0.3  # nats, of every run at the lowest vision rank


def loss(r_me, r_llm, D):
    return 1.5 + 2.0 * (D / 100) ** -0.3 + WORSE * (r_me == 8)


def own_seeds(table):
    return table.assign(seed=table["run_id"].factorize()[0])


def own_steps(table):
    """Each pair is looked at at steps of its own."""
    moved = table["run_id"].factorize()[0]
    step = table["step"] + moved
    return table.assign(
        step=step, D=8 * step, value=[loss(*row) for row in zip(table.r_me, table.r_llm, 8 * step, strict=True)]
    )


def two_halves(table):
    """Half of the pairs were run with one seed, the others with another."""
    return table.assign(seed=(table["r_me"] > 8).astype(int))


@pytest.mark.parametrize("apart", [own_seeds, own_steps, two_halves])
def test_runs_that_share_nothing_are_compared_all_the_same(table_of, apart):
    """Seen to within an eighth: the doubt of half a percent of the loss at a checkpoint is a twenty-sixth of it."""
    curves = read_curves(apart(table_of(loss, ranks_me=(8, 16, 32), ranks_llm=(8, 16, 32), noise=0.003)))
    values = fit_surface(curves, curves.pairs).differences(curves.largest)
    worse = np.array([pair[0] == 8 for pair in curves.pairs])
    difference = values[:, worse].mean(axis=1) - values[:, ~worse].mean(axis=1)
    low, high = np.percentile(difference, [2.5, 97.5])
    assert low < WORSE < high
    assert high - low < 0.25 * WORSE


def test_a_run_cut_short_shares_the_checkpoints_that_it_has(table_of, eq1, schedule):
    table = table_of(eq1, lr=schedule)
    cut = table[(table["run_id"] != "8-8-0") | (table["step"] < 256)]
    curves = read_curves(cut)
    own = np.array([curves.pairs[index] == (8, 8) for index in curves.pair])
    assert own.any()
    assert (curves.common.doubt == 0).all()
    assert set(curves.common.effect[own]) < set(curves.common.effect[~own])


def test_seeds_that_connect_the_pairs_keep_their_effects_apart(table_of, eq1):
    curves = read_curves(table_of(eq1, seeds=2))
    assert (curves.common.doubt == 0).all()
    checkpoints = len(np.unique(curves.size))
    assert len(np.unique(curves.common.effect)) == 2 * checkpoints


def test_the_spread_of_runs_is_seen_whoever_shares_seeds(table_of):
    """Two runs of each pair that end 5% apart, on smooth curves, with shared seeds and with a seed for every run."""
    table = table_of(loss, ranks_me=(8, 16), ranks_llm=(8, 16), seeds=2)
    luck = dict(zip(table["run_id"].unique(), 0.05 * np.random.default_rng(3).standard_normal(8), strict=True))
    spread = table.assign(value=table["value"] + table["run_id"].map(luck))
    for apart in (spread, own_seeds(spread)):
        assert 0.02 < spread_of_runs(read_curves(apart)) < 0.1


def test_runs_made_for_several_sizes_are_no_spread(table_of, eq1):
    """One run for each size, without noise: that pairs differ by size is no luck."""
    sizes = [table_of(eq1, ranks_me=(8, 64), ranks_llm=(8, 64), steps=(end // 2, end)) for end in (64, 128, 256)]
    named = [table.assign(run_id=table["run_id"] + f"-{end}") for table, end in zip(sizes, (64, 128, 256), strict=True)]
    assert spread_of_runs(read_curves(pd.concat(named))) == 0.0
