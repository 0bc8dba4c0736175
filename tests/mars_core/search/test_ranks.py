import pytest
from hypothesis import given
from hypothesis import strategies as st

from mars_core.search.ranks import both_neighbours, nearest_or_clamped

RANKS = (8, 16, 32, 64)


def test_both_neighbours_are_kept():
    assert both_neighbours(20.0, RANKS).ranks == (16, 32)
    assert both_neighbours(20.0, RANKS).how == ("below", "above")


def test_an_available_rank_stands_alone():
    assert both_neighbours(16.0 * (1 + 1e-9), RANKS).ranks == (16,)
    assert both_neighbours(8.0, RANKS).how == ("exact",)
    assert both_neighbours(64.0, RANKS).how == ("exact",)


@pytest.mark.parametrize("rank", [7.9, 65.0, 1e9, 1e-9])
def test_out_of_range_is_dropped_with_its_reason(rank):
    mapped = both_neighbours(rank, RANKS)
    assert mapped.ranks == ()
    assert "outside the available vision ranks 8 to 64" in mapped.reason


@pytest.mark.parametrize(("rank", "taken", "how"), [(20.0, 16, "nearest"), (24.0, 16, "nearest"), (24.1, 32, "nearest"),
                                                    (3.0, 8, "clamped"), (500.0, 64, "clamped")])  # fmt: skip
def test_the_papers_rule_takes_the_closest(rank, taken, how):
    assert nearest_or_clamped(rank, RANKS).ranks == (taken,)
    assert nearest_or_clamped(rank, RANKS).how == (how,)


@given(st.floats(8.0, 64.0))
def test_neighbours_bracket_the_rank(rank):
    ranks = both_neighbours(rank, RANKS).ranks
    assert ranks[0] <= rank * (1 + 1e-6)
    assert ranks[-1] >= rank * (1 - 1e-6)
    assert nearest_or_clamped(rank, RANKS).ranks[0] in (*ranks, *RANKS)
