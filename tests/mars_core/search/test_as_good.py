"""Which measured pairs are as good as the best: rates on planted measurements."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import f_oneway

from mars_core.search.as_good import as_good_as_the_best
from mars_core.search.objective import PERPLEXITY_OBJECTIVE, objective_named

RANKS = (8, 16, 32, 64)
PAIRS = [(m, n) for m in RANKS for n in RANKS]


def measurements(level, noise, rng, seeds=1):
    rows = [(m, n, 2048.0, s, 2.0 + level(m, n)) for m, n in PAIRS for s in range(seeds)]
    table = pd.DataFrame(rows, columns=["r_me", "r_llm", "D", "seed", "loss"])
    return table.assign(loss=table.loss + noise * rng.standard_normal(len(table)))


@pytest.mark.parametrize("seeds", [1, 3])
def test_of_equal_pairs_all_are_as_good_in_all_but_5_percent(seeds):
    """Of 400 null tables 20 are expected to differ by chance; 34 are 3.2 standard deviations more."""
    rng = np.random.default_rng(0)
    found = [
        as_good_as_the_best(measurements(lambda m, n: 0.0, 0.01, rng, seeds), PAIRS, 0.0025, PERPLEXITY_OBJECTIVE)
        for _ in range(400)
    ]
    assert sum(item.differ for item in found) <= 34
    assert all(item.pairs == frozenset(PAIRS) for item in found if not item.differ)
    # the noise of 1% of perplexity is estimated from 8 or 30 degrees of freedom in each table
    assert np.median([item.noise for item in found]) == pytest.approx(0.01, rel=0.1)


def test_the_p_value_of_repeated_pairs_is_that_of_the_analysis_of_variance():
    table = measurements(lambda m, n: 0.002 * np.log2(m), 0.01, np.random.default_rng(1), seeds=3)
    groups = [own["loss"].to_numpy() for _, own in table.groupby(["r_me", "r_llm"])]
    found = as_good_as_the_best(table.drop(columns="seed"), PAIRS, 0.0, PERPLEXITY_OBJECTIVE)
    assert found.p_value == pytest.approx(f_oneway(*groups).pvalue)
    assert found.noise == pytest.approx(np.sqrt(np.mean([np.var(group, ddof=1) for group in groups])))


def test_what_all_pairs_of_a_seed_have_in_common_is_no_noise():
    """Pairs of a seed share the order of their samples: a shift of each seed must not hide their differences."""
    table = measurements(lambda m, n: 0.01 * np.log2(m), 0.005, np.random.default_rng(2), seeds=3)
    shifted = table.assign(loss=table.loss + 0.5 * table.seed)
    plain, moved = (as_good_as_the_best(t, PAIRS, 0.0025, PERPLEXITY_OBJECTIVE) for t in (table, shifted))
    assert (plain.pairs, plain.p_value) == (moved.pairs, pytest.approx(moved.p_value))


def test_plain_differences_leave_only_the_best():
    rng = np.random.default_rng(3)
    optimum = lambda m, n: 0.05 * ((np.log2(m) - 4) ** 2 + (np.log2(n) - 5) ** 2)  # noqa: E731
    found = as_good_as_the_best(measurements(optimum, 0.001, rng), PAIRS, 0.0025, PERPLEXITY_OBJECTIVE)
    assert found.differ
    assert found.pairs == {(16, 32)} == {found.best}


def test_only_allowed_pairs_are_compared_and_too_few_runs_tell_nothing():
    table = measurements(lambda m, n: 0.0, 0.01, np.random.default_rng(4))
    metric = objective_named("letter_error")
    found = as_good_as_the_best(table, [(8, 8), (64, 64), (128, 128)], 0.0025, metric)
    assert set(found.losses) == {(8, 8), (64, 64)}
    assert as_good_as_the_best(table, [(128, 128)], 0.0025, metric) is None
    assert as_good_as_the_best(table[(table.r_me <= 16) & (table.r_llm <= 16)], PAIRS, 0.0025, metric) is None
