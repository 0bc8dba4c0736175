"""Which rates are tried: the range test's answer, the first round, and what is tried next."""

import math

import pytest

from mars_core.ranks import RankPair
from mars_core.rate_search import (
    RANGE,
    anchors,
    best_of_range,
    first_rates,
    measured_edge,
    missing_rates,
    range_pairs,
)
from mars_core.rate_search.range_test import range_steps

RANKS = (8, 16, 32, 64)
PAIRS = [RankPair(a, b) for a in RANKS for b in RANKS]
REFERENCE = RankPair(16, 16)


def test_the_range_test_finds_the_bottom_of_a_parabola():
    """Three points decide a parabola, so its bottom is found exactly."""
    losses = {rate: (math.log(rate) - math.log(7e-4)) ** 2 for rate in RANGE}
    assert best_of_range(losses) == pytest.approx(7e-4)


def test_runs_that_diverged_are_passed_over():
    losses = {1e-5: 3.0, 1e-4: 2.0, 1e-3: 1.0, 1e-2: math.nan}
    assert best_of_range(losses) == pytest.approx(1e-3)
    with pytest.raises(ValueError, match=r"every run .*1e-03 to 1e-02"):
        best_of_range({1e-3: math.nan, 1e-2: math.inf})


def test_a_flat_range_has_its_lowest_rate():
    """Nothing tells the rates apart: the first, which does the least harm."""
    assert best_of_range(dict.fromkeys((1e-4, 1e-3, 1e-2), 2.0)) == pytest.approx(1e-4)


def test_the_range_test_is_short():
    assert range_pairs(RANKS, RANKS) == ((8, 8), (64, 64))
    assert range_pairs((0, 8), (0, 8, 16)) == ((8, 8), (8, 16))
    assert (range_steps(256), range_steps(2048), range_steps(8)) == (16, 128, 8)


def test_the_first_round_costs_less_than_twice_the_grid():
    rates = first_rates(PAIRS, REFERENCE, 1e-3)
    assert {pair for pair, own in rates.items() if len(own) > 1} == {(8, 8), (8, 64), (64, 8), (64, 64), (16, 16)}
    assert sum(map(len, rates.values())) <= 2 * len(PAIRS)
    assert rates[REFERENCE] == (2.5e-4, 5e-4, 1e-3, 2e-3)
    assert max(rates[RankPair(64, 64)]) < max(rates[RankPair(8, 8)])  # higher ranks want lower rates


def test_pairs_without_an_adapter_have_an_anchor_of_their_own():
    pairs = [*PAIRS, RankPair(0, 8), RankPair(0, 64), RankPair(16, 0)]
    assert {pair for pair in anchors(pairs, REFERENCE) if 0 in pair} == {(0, 64), (16, 0)}


def test_an_optimum_at_the_edge_widens_the_range():
    several = [RankPair(8, 8)]
    tried = {RankPair(8, 8): (1e-4, 2e-4, 4e-4), RankPair(16, 16): (1e-4,)}
    best = {RankPair(8, 8): 4.5e-4, RankPair(16, 16): 1.2e-4}
    assert missing_rates(tried, best, several) == {(8, 8): (8e-4,)}
    assert missing_rates(tried, best | {RankPair(8, 8): 9e-5}, several) == {(8, 8): (5e-5,)}
    assert missing_rates(tried, best | {RankPair(8, 8): 2e-4}, several) == {}


def test_a_pair_tried_far_from_its_best_rate_is_tried_there():
    tried, best = {RankPair(16, 16): (1e-4,)}, {RankPair(16, 16): 3.14159e-4}
    assert missing_rates(tried, best, []) == {(16, 16): (3.1e-4,)}


def test_runs_that_are_lowest_at_the_edge_say_so_whatever_a_parabola_says():
    """The loss falls ever faster: a parabola through all of it has its bottom inside."""
    assert measured_edge({1e-3: 2.6, 2e-3: 2.45, 4e-3: 2.156, 8e-3: 1.744}) == 8e-3
    assert measured_edge({1e-3: 1.0, 2e-3: 1.2, 4e-3: 1.9}) == 1e-3
    assert measured_edge({1e-3: 2.6, 2e-3: 2.1, 4e-3: 2.2}) is None
    assert measured_edge({1e-3: 2.6, 2e-3: 2.1, 4e-3: 2.0, 8e-3: math.nan}) is None  # what lies beyond has diverged
    assert measured_edge({1e-3: 2.6, 2e-3: 2.1}) is None


def test_no_rate_is_tried_at_which_a_pair_diverged_or_above():
    pair, other = RankPair(8, 8), RankPair(16, 16)
    tried, best = {pair: (1e-3, 2e-3, 4e-3, 8e-3), other: (8e-3,)}, {pair: 7e-3, other: 5e-3}
    assert missing_rates(tried, best, [pair]) == {pair: (1.6e-2,)}
    lost = {pair: [8e-3], other: [8e-3]}
    assert missing_rates(tried, best, [pair], lost) == {other: (4e-3,)}  # which has no run left
