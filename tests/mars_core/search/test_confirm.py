"""Which pairs a calibration trains again before one is chosen."""

from collections import Counter

import numpy as np
import pytest

from mars_core.fitting.learning_rate import fit_learning_rates
from mars_core.search.confirm import BESIDE, ENOUGH, FEWEST, Budget, confirmations, regret_bound, rivals
from mars_core.search.outlook import Outlook
from tests.mars_core.fitting.test_learning_rate import ends, planted

PAIRS = ((2, 2), (2, 16), (4, 4), (8, 8), (16, 2), (16, 16))


@pytest.fixture(scope="module")
def rates():
    rng = np.random.default_rng(1)
    return fit_learning_rates(ends(lambda pair, _, x, seed: planted(pair, x) + 0.001 * rng.standard_normal()), 0.6)


def outlook(means, sd, pairs=PAIRS):
    """Draws of independent pairs."""
    value = np.asarray(means) + sd * np.random.default_rng(0).standard_normal((4000, len(pairs)))
    return Outlook(tuple(pairs), value, np.exp(value), 2048.0, 2048.0)


FAR = (0.0, 0.002, 0.003, 0.2, 0.2, 0.2)


def test_pairs_that_are_told_apart_are_not_trained_again(rates):
    assert confirmations(outlook([0.0, *[0.2] * 5], 0.001), rates, [0], 0, Budget(6, 24)) == ()


def test_the_pairs_that_may_be_best_are_trained_again_above_and_below_their_best_rates(rates):
    """Three of six pairs may be best, and six runs are to be had: two seeds, each pair once above and once below."""
    found = confirmations(outlook(FAR, 0.01), rates, [0, 1, 4], 0, Budget(6, 24))
    assert Counter(one.pair for one in found) == {(2, 2): 2, (2, 16): 2, (4, 4): 2}
    assert {one.seed for one in found} == {5, 6}
    for pair in PAIRS[:3]:
        best = float(np.exp(rates.best(pair, 2048.0)[0]))
        own = sorted(one.rate for one in found if one.pair == pair)
        assert own == pytest.approx([best / BESIDE, best * BESIDE], rel=0.06)  # in two digits
    for seed in (5, 6):  # not all above in one seed: it would look like the rate's work
        above = [one.rate > np.exp(rates.best(one.pair, 2048.0)[0]) for one in found if one.seed == seed]
        assert 0 < sum(above) < len(above)


def test_what_may_be_spent_is_spent_once(rates):
    unsure = outlook([0.0] * 6, 0.05)
    spent, sizes = 0, []
    while found := confirmations(unsure, rates, [0], spent, Budget(6, 60)):
        sizes.append(len(found))
        spent += len(found)
    assert 60 - 2 * FEWEST < spent <= 60
    assert sizes[:2] == [2 * FEWEST] * 2  # one above and one below of each
    assert sizes == sorted(sizes) or spent == 60
    assert confirmations(unsure, rates, [0], 0, Budget(6, 2 * FEWEST - 1)) == ()


def test_no_rate_is_tried_at_which_the_pair_diverged_or_above(rates):
    best = float(np.exp(rates.best((2, 2), 2048.0)[0]))
    found = confirmations(outlook(FAR, 0.01), rates, [0], 0, Budget(6, 24), {(2, 2): [best * 1.2]})
    assert {one.rate < best for one in found if one.pair == (2, 2)} == {True}
    assert {one.rate < np.exp(rates.best((4, 4), 2048.0)[0]) for one in found if one.pair == (4, 4)} == {True, False}


def test_the_bound_has_the_cost_of_an_uncertain_rate(rates):
    """A single pair has no regret but its rate's: the 95% point of a chi-squared variable is 3.84."""
    pair, size = (4, 4), np.array([2048.0])
    variance = rates.best_sd([pair], size)[0, 0] ** 2
    expected = rates.law.curvature(rates.phi, [pair], size)[0, 0] * variance * 3.84
    assert regret_bound(outlook([0.0], 0.01, [pair]), rates) == pytest.approx(np.expm1(expected), rel=0.1)
    assert expected < ENOUGH


def test_a_pair_to_which_nothing_would_be_lost_is_no_rival():
    """(2, 16) is the best pair as often as (2, 2), but by next to nothing; (4, 4) seldom, and then by much."""
    rng = np.random.default_rng(0)
    value = np.full((4000, 6), 1.0)
    value[:, 0], value[:, 1] = 0.0, 1e-5 * rng.standard_normal(4000)
    value[:, 2] = np.where(rng.random(4000) < 0.1, -0.05, 1.0)
    found = rivals(Outlook(PAIRS, value, np.exp(value), 2048.0, 2048.0), 6)
    assert set(found) <= {(2, 2), (2, 16), (4, 4)}
    assert (4, 4) in found
    assert len(found) == 2
