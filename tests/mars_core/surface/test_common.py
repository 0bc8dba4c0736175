"""What runs share: a table whose runs share no seed or no step must still tell the pairs apart."""

import numpy as np
import pytest

from mars_core.surface import fit_surface, read_curves

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
