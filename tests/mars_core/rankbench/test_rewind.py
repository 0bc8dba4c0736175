from __future__ import annotations

import math

import pytest

from mars_core.rankbench.rewind import rewind_time


def test_half_of_the_rise_lies_between_snapshots_linear_in_log_steps():
    # rises 8, 6, 2, 0: half of 8 is 4, midway from 6 to 2, so at the geometric mean of 1 + 3 and 1 + 15
    assert rewind_time([0, 3, 15, 31], [10, 8, 4, 2], 2.0) == pytest.approx(math.sqrt(4 * 16) - 1)


def test_a_module_that_learns_at_once_is_timed_within_the_first_snapshot():
    # rises 1, 0: half is crossed midway in log(1 + step) from 0 to 8
    assert rewind_time([0, 8], [1.0, 0.0], 0.0) == pytest.approx(math.sqrt(9) - 1)


@pytest.mark.parametrize("losses", [[1.0, 0.5, 1.0], [0.9, 0.5, 1.0]])
def test_a_module_whose_adapters_help_nothing_has_no_time(losses):
    assert math.isnan(rewind_time([0, 4, 8], losses, 1.0))


def test_only_the_first_crossing_counts():
    # rises 4, 1, 3, 0
    assert rewind_time([0, 1, 3, 7], [4, 1, 3, 0], 0.0) == pytest.approx(2 ** (2 / 3) - 1)
