from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mars_core.training.schedule import geometric_steps

RANGES = st.tuples(st.integers(1, 500), st.integers(0, 5000)).map(lambda pair: (pair[0], pair[0] + pair[1]))


@given(RANGES, st.integers(1, 5))
def test_steps_increase_from_first_to_last(ends, per_doubling):
    first, last = ends
    steps = geometric_steps(first, last, per_doubling=per_doubling)
    assert steps[0] == first
    assert steps[-1] == last
    assert list(steps) == sorted(set(steps))
    assert all(isinstance(step, int) for step in steps)


@given(RANGES, st.integers(1, 5))
def test_doublings_of_the_first_step_are_among_them(ends, per_doubling):
    first, last = ends
    doublings = {first * 2**k for k in range(13) if first * 2**k <= last}
    assert doublings <= set(geometric_steps(first, last, per_doubling=per_doubling))


@given(RANGES, st.integers(1, 5))
def test_each_step_but_the_last_lies_on_the_logarithmic_grid(ends, per_doubling):
    first, last = ends
    for step in geometric_steps(first, last, per_doubling=per_doubling)[:-1]:
        nearest = round(per_doubling * math.log2(step / first))
        # Rounding to whole steps may pull a small step nearer to a neighbouring grid point.
        candidates = [first * 2 ** (index / per_doubling) for index in (nearest - 1, nearest, nearest + 1)]
        assert min(abs(step - exact) for exact in candidates) <= 0.5


@given(RANGES, st.integers(1, 5))
def test_no_grid_point_is_left_out(ends, per_doubling):
    first, last = ends
    steps = geometric_steps(first, last, per_doubling=per_doubling)
    for before, after in itertools.pairwise(steps):
        # Neighbours are one grid interval apart, give or take the rounding of both.
        assert after <= (before + 0.5) * 2 ** (1 / per_doubling) + 0.5


@pytest.mark.parametrize(
    ("first", "last", "expected"),
    [
        (16, 256, (16, 23, 32, 45, 64, 91, 128, 181, 256)),
        (1, 8, (1, 2, 3, 4, 6, 8)),
        (32, 50, (32, 45, 50)),
        (7, 7, (7,)),
    ],
)
def test_steps_by_hand(first, last, expected):
    assert geometric_steps(first, last) == expected


@pytest.mark.parametrize(("first", "last"), [(0, 4), (-1, 4), (5, 4)])
def test_an_empty_range_is_refused(first, last):
    with pytest.raises(ValueError, match=rf"got first={first} and last={last}"):
        geometric_steps(first, last)
