import pytest
from hypothesis import given
from hypothesis import strategies as st

from mars_core.search.ranks import both_neighbours, nearest_or_clamped

RANKS = (8, 16, 32, 64)


def test_both_neighbours_are_kept():
    assert both_neighbours(20.0, None, RANKS).ranks == (16, 32)
    assert both_neighbours(20.0, None, RANKS).how == ("below", "above")


def test_an_available_rank_stands_alone():
    assert both_neighbours(16.0 * (1 + 1e-9), None, RANKS).ranks == (16,)
    assert both_neighbours(8.0, None, RANKS).how == ("exact",)
    assert both_neighbours(64.0, None, RANKS).how == ("exact",)


@pytest.mark.parametrize("rank", [7.9, 65.0, 1e9, 1e-9])
def test_out_of_range_is_dropped_with_its_reason(rank):
    mapped = both_neighbours(rank, None, RANKS)
    assert mapped.ranks == ()
    assert "outside the available vision ranks 8 to 64" in mapped.reason


@pytest.mark.parametrize(
    ("rank", "interval", "kept"),
    [
        (66.0, (60.0, 75.0), (64,)),
        (66.0, (65.0, 67.0), ()),
        (7.0, (6.0, 8.5), (8,)),
        (7.0, (6.5, 7.5), ()),
        (92.0, (50.0, 200.0), ()),
        (5.0, (1.0, 70.0), ()),
    ],
)
def test_the_edge_stays_where_the_interval_reaches_it(rank, interval, kept):
    mapped = both_neighbours(rank, interval, RANKS)
    assert mapped.ranks == kept
    assert mapped.how == ("edge",) * len(kept)


@pytest.mark.parametrize(("rank", "taken", "how"), [(20.0, 16, "nearest"), (24.0, 16, "nearest"), (24.1, 32, "nearest"),
                                                    (3.0, 8, "clamped"), (500.0, 64, "clamped")])  # fmt: skip
def test_the_papers_rule_takes_the_closest(rank, taken, how):
    assert nearest_or_clamped(rank, None, RANKS).ranks == (taken,)
    assert nearest_or_clamped(rank, None, RANKS).how == (how,)


@given(st.floats(8.0, 64.0))
def test_neighbours_bracket_the_rank(rank):
    ranks = both_neighbours(rank, None, RANKS).ranks
    assert ranks[0] <= rank * (1 + 1e-6)
    assert ranks[-1] >= rank * (1 - 1e-6)
    assert nearest_or_clamped(rank, None, RANKS).ranks[0] in (*ranks, *RANKS)
