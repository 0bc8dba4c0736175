"""The decision on hand-made posteriors: when a cheaper pair is as good, when nothing can be told."""

import numpy as np
import pytest

from mars_core.search.decide import decide, seeds_to_tell
from mars_core.search.outlook import Outlook

PAIRS = ((8, 8), (8, 64), (64, 64))
COUNTS = (16, 72, 128)


def outlook(means, sd, n=4000):
    """Independent normal values of every pair; 4,000 draws, so shares are within 2.4% (3 standard errors)."""
    draws = np.array(means) + sd * np.random.default_rng(0).standard_normal((n, len(means)))
    return Outlook(PAIRS, draws, draws, 4096.0, 2048.0)


def test_the_smallest_expected_regret_wins_where_the_pairs_differ():
    found = decide(outlook([0.05, 0.02, 0.0], 0.001), COUNTS, 0.0025, (), 1)
    assert (found.pair, found.verdict, found.seeds_needed) == ((64, 64), "best", None)


def test_a_cheaper_pair_is_as_good_only_where_that_is_sure():
    sure = decide(outlook([0.001, 0.0005, 0.0], 0.0002), COUNTS, 0.0025, (), 1)
    assert (sure.pair, sure.best, sure.verdict) == ((8, 8), (64, 64), "as good and cheaper")
    unsure = decide(outlook([0.002, 0.002, 0.0], 0.004), COUNTS, 0.0025, (), 1)
    assert unsure.pair == (64, 64)
    assert unsure.verdict == "cannot tell"


def test_no_difference_seen_is_no_promise():
    """Equal means and much noise: nothing is promised, and the verdict says that it cannot be told."""
    assert decide(outlook([0.0, 0.0, 0.0], 0.02), COUNTS, 0.0025, (), 1).verdict == "cannot tell"


def test_without_a_margin_the_best_is_taken_whatever_it_costs():
    assert decide(outlook([1e-5, 1e-5, 0.0], 1e-6), COUNTS, 0.0, (), 1).pair == (64, 64)


def test_balance_breaks_ties_of_cost_alone():
    equal_cost = (100, 101, 128)
    draws = outlook([0.0005, 0.0005, 0.0], 0.0002)
    assert decide(draws, equal_cost, 0.0025, (), 1).pair == (8, 8)
    assert decide(draws, equal_cost, 0.0025, {(8, 64)}, 1).pair == (8, 64)
    assert decide(draws, COUNTS, 0.0025, {(8, 64)}, 1).pair == (8, 8)


def test_of_pairs_that_cost_the_same_the_better_one_is_taken():
    same_cost = (100, 100, 128)
    assert decide(outlook([0.001, 0.0005, 0.0], 0.0001), same_cost, 0.0025, (), 1).pair == (8, 64)
    assert decide(outlook([0.0005, 0.001, 0.0], 0.0001), same_cost, 0.0025, (), 1).pair == (8, 8)


def test_a_frozen_module_wins_no_tie():
    """Equal in expectation and nothing sure: a cheaper pair stands for all, but not one that freezes a module."""
    found = outlook([0.0005, 0.0005, 0.0], 0.004)
    assert decide(found, COUNTS, 0.0025, (), 1).pair == (8, 8)
    frozen = Outlook(((0, 8), (8, 64), (64, 64)), found.value, found.quantity, 4096.0, 2048.0)
    assert decide(frozen, COUNTS, 0.0025, (), 1).pair == (8, 64)
    sure = outlook([0.0005, 0.0005, 0.0], 0.0002)
    frozen = Outlook(((0, 8), (8, 64), (64, 64)), sure.value, sure.quantity, 4096.0, 2048.0)
    assert decide(frozen, COUNTS, 0.0025, (), 1).pair == (0, 8)


@pytest.mark.parametrize(("difference", "expected"), [(0.02, 8), (0.05, 2)])
def test_seeds_to_tell_is_the_power_of_a_known_difference(difference, expected):
    """One run per pair, a difference with a spread of 0.02 sqrt(2): n = (1.96 * 0.0283 / difference)^2, at least 2."""
    found = seeds_to_tell(outlook([0.3, difference, 0.0], 0.02, n=20000), (64, 64), 0.0025, 1)
    assert found == pytest.approx(expected, abs=1)


def test_seeds_to_tell_gives_up_above_a_dozen():
    assert seeds_to_tell(outlook([0.001, 0.001, 0.0], 0.05), (64, 64), 0.0025, 1) is None
