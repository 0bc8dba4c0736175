from __future__ import annotations

import pytest

from mars_core.ranks import RankGrid, RankPair
from mars_core.rates import LearningRates, one_rate


@pytest.mark.parametrize(
    ("rates", "slug"),
    [
        (one_rate(2e-4), "lr2e-4"),
        (one_rate(2.54e-5), "lr2.54e-5"),
        (one_rate(1.0), "lr1e0"),
        (LearningRates(1e-4, 2e-4, 2e-4), "lr1e-4-2e-4"),
        (LearningRates(1e-4, 3e-4, 2e-4), "lr1e-4-2e-4-3e-4"),
        (LearningRates(1e-4, 3e-4, 1e-4), "lr1e-4-1e-4-3e-4"),
    ],
)
def test_a_folder_name_says_the_rates(rates, slug):
    assert rates.slug == slug


def test_a_module_without_adapters_has_no_rate_of_its_own():
    rates = LearningRates(1e-4, 3e-4, 2e-4)
    assert rates.of_pair((8, 16)) == rates
    assert rates.of_pair((0, 16)) == LearningRates(2e-4, 3e-4, 2e-4)
    assert rates.of_pair((8, 0)) == one_rate(1e-4)


def test_the_reference_is_the_uniform_pair_in_the_middle_of_shared_ranks():
    assert RankGrid((8, 16, 32, 64), (8, 16, 32, 64)).reference == (16, 16)
    assert RankGrid((0, 8, 16), (8, 16, 32)).reference == (8, 8)
    assert RankGrid((0, 2, 4, 6), (8, 16, 32)).reference == RankPair(4, 16)
