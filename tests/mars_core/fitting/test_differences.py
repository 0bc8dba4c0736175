"""Differences between pairs at held-out sizes: against refits done one by one, and where ranks do or do not matter."""

import numpy as np
import pandas as pd
import pytest

from mars_core.fitting import fit_law
from mars_core.fitting.differences import held_out_differences
from mars_core.fitting.holdout import largest_sizes
from mars_core.fitting.solve import solve
from mars_core.fitting.table import read_table
from mars_core.laws import get_law

RANKS = (8, 16, 32, 64)
SIZES = 2.0 ** np.arange(7, 12)
LARGEST = 2048.0
LAW = get_law("performance")


def points(alphas=(0.05, 0.15), noise=0.003, jump=1.0, seed=1, ranks=RANKS):
    """Law P with one run per pair; at the largest size all losses are `jump` times as high."""
    table = pd.DataFrame([(m, n, D) for m in ranks for n in ranks for D in SIZES], columns=["r_me", "r_llm", "D"])
    rng = np.random.default_rng(seed)
    luck = np.repeat(rng.standard_normal(len(ranks) ** 2), len(SIZES))
    error = noise * (luck + rng.standard_normal(len(table)))
    run = table.r_me.astype(str) + "-" + table.r_llm.astype(str)
    loss = LAW.predict((8.0, *alphas, 0.3, 1.0), table) * np.exp(error) * np.where(table.D == LARGEST, jump, 1.0)
    return table.assign(run_id=run, loss=loss)


def compared(table):
    rows = read_table(LAW, table, "run_id")
    split = largest_sizes(LAW, rows)
    train, test = rows.subset(~split.test), rows.subset(split.test)
    return held_out_differences(solve(LAW, train, 1e-3, 16, 0), train, test)


def test_each_pair_is_predicted_by_a_fit_without_its_runs():
    """Sixteen fits of their own, each from many starts, instead of one batch from warm starts."""
    table = points()
    last = table[table.D == LARGEST]
    errors = []
    for run in last.run_id:
        rest = table[(table.run_id != run) & (table.D < LARGEST)]
        theta = solve(LAW, read_table(LAW, rest, "run_id"), 1e-3, 16, 1).theta
        residual = np.log(last.loss) - np.log(LAW.predict(theta, last))
        errors.append(abs((residual - residual.mean())[last.run_id == run].item()))
    observed = np.log(last.loss)
    found = compared(table)
    # the batch stops at a relative objective of 1e-7, a hundredth of a standard error
    assert found.law == pytest.approx(np.mean(errors), rel=0.02)
    assert found.none == pytest.approx(np.mean(np.abs(observed - observed.mean())))
    assert found.n_pairs == 16


def test_what_all_pairs_have_in_common_does_not_count():
    """An annealed last checkpoint: an absolute error of 10%, and not a word about the ranks."""
    plain, annealed = compared(points()), compared(points(jump=0.9))
    assert (annealed.law, annealed.none) == (pytest.approx(plain.law), pytest.approx(plain.none))


def test_the_flag_goes_up_where_ranks_do_nothing_and_not_where_an_annealed_size_hides_the_law():
    """Rates over many surfaces are in docs/law-diagnostics.md."""
    sound = [compared(points(jump=0.9, seed=seed)) for seed in range(4)]
    none = [compared(points(alphas=(0.0, 0.0), seed=seed)) for seed in range(4)]
    assert all(found.law < 0.9 * found.none for found in sound)
    assert sum(found.law >= 0.9 * found.none for found in none) >= 2  # 90% of such surfaces
    few = {"n_bootstrap": 2, "n_starts": 8}
    annealed, nothing = (fit_law("performance", table, **few) for table in (points(jump=0.9), points(alphas=(0, 0))))
    assert annealed.held_out.mape >= 0.05
    assert not annealed.has("differences_not_predicted")
    assert nothing.held_out.no_difference_error == pytest.approx(none[1].none)
    assert ("error" in [s.severity for s in nothing.statuses]) == (none[1].law >= 0.9 * none[1].none)


def test_ranks_that_only_say_how_fast_do_not_rank_what_all_pairs_reach():
    """Law P fits the early differences and carries them to a size at which there are none."""
    table = points(alphas=(0.0, 0.0), noise=0.0005)
    speed = (table.r_me / 16) ** 0.15 * (table.r_llm / 16) ** 0.25
    table["loss"] += 0.4 * np.exp(-table.D * speed / 150)
    fit = fit_law("performance", table, n_bootstrap=2, n_starts=8)
    assert fit.held_out.difference_error > 2 * fit.held_out.no_difference_error
    assert fit.has("differences_not_predicted")


def test_where_no_pair_can_be_left_out_the_law_is_marked_as_not_validated():
    fit = fit_law("performance", points(ranks=(8, 16)).query("run_id != '16-16'"), n_bootstrap=2, n_starts=8)
    assert fit.held_out is not None
    assert fit.held_out.difference_error is None
    assert [s.code for s in fit.statuses if s.severity == "warning" and "pair could be left out" in s.message] == [
        "not_validated"
    ]


@pytest.mark.parametrize(("ranks", "sizes", "says"), [((8, 16), SIZES, "no rank could be left out"),
                                                      (RANKS, SIZES[:2], "no points of D could be held out"),
                                                      (RANKS, SIZES, None)])  # fmt: skip
def test_a_law_c_that_nothing_could_test_is_marked(ranks, sizes, says):
    """Two ranks leave none to predict from the other; of two sizes, one carries no law of the size."""
    rng = np.random.default_rng(0)
    rows = [(r, D, s) for r in ranks for D in sizes for s in range(4)]
    table = pd.DataFrame(rows, columns=["r", "D", "seed"])
    truth = get_law("convergence").predict((2.0, -0.25, 0.8, 10.0), table)
    table = table.assign(steps=truth * np.exp(0.02 * rng.standard_normal(len(table))), S_D=table.D / 8)
    statuses = fit_law("convergence", table, n_bootstrap=2, n_starts=8).statuses
    messages = [status.message for status in statuses if status.code == "not_validated"]
    assert (len(messages) == 1 and says in messages[0]) if says else messages == []


def test_many_pairs_are_left_out_some_at_a_time():
    """49 pairs by 32 fits: what is left out beside a pair hardly moves its prediction."""
    table = points(ranks=(2, 4, 8, 16, 32, 64, 128))
    found = compared(table)
    assert found.n_pairs == 49
    last = table[table.D == LARGEST]
    truth = LAW.predict((8.0, 0.05, 0.15, 0.3, 1.0), last)
    unexplained = np.log(last.loss) - np.log(truth)
    # the noise, which no prediction can go below, plus the error of slopes known from 47 runs
    assert found.law == pytest.approx(np.mean(np.abs(unexplained - unexplained.mean())), rel=0.1)
