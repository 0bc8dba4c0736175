import pytest
from hypothesis import given
from hypothesis import strategies as st

from mars_core.search.ranks import nearest_or_clamped, neighbours

RANKS = (8, 16, 32, 64)


def test_both_neighbours_are_kept():
    assert neighbours(20.0, RANKS) == (16, 32)


def test_an_available_rank_stands_alone():
    assert neighbours(16.0 * (1 + 1e-9), RANKS) == (16,)
    assert neighbours(8.0, RANKS) == (8,)


@pytest.mark.parametrize("rank", [7.9, 65.0, 1e9, 1e-9])
def test_out_of_range_has_no_neighbours(rank):
    assert neighbours(rank, RANKS) == ()


@pytest.mark.parametrize(
    ("rank", "taken", "how"),
    [(20.0, 16, "nearest"), (24.0, 16, "nearest"), (24.1, 32, "nearest"), (3.0, 8, "clamped"), (500.0, 64, "clamped")],
)
def test_the_papers_rule_takes_the_closest(rank, taken, how):
    assert nearest_or_clamped(rank, RANKS) == (taken, how)


@given(st.floats(8.001, 63.999))
def test_neighbours_bracket_the_rank(rank):
    found = neighbours(rank, RANKS)
    assert found[0] * (1 - 1e-6) <= rank <= found[-1] * (1 + 1e-6)
