import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mars_core.convergence.curves import first_step_at

STEPS = np.array([8.0, 16.0, 32.0, 64.0])


@given(st.floats(8.0, 64.0))
def test_exact_where_the_curve_is_linear_in_log_steps(step):
    values = 5.0 - 0.3 * np.log(STEPS)
    assert first_step_at(STEPS, values, 5.0 - 0.3 * np.log(step)) == pytest.approx(step, rel=1e-9)


def test_a_level_below_the_curve_is_not_reached():
    assert first_step_at(STEPS, np.array([4.0, 3.0, 2.5, 2.4]), 2.3) is None


def test_a_flat_stretch_gives_its_first_step():
    assert first_step_at(STEPS, np.array([4.0, 3.0, 3.0, 2.0]), 3.0) == 16.0


@given(st.floats(0.1, 10.0), st.floats(0.1, 10.0))
def test_units_of_steps_scale_the_time(scale, level_share):
    values = np.array([4.0, 3.0, 2.5, 2.4])
    level = 2.4 + 1.6 * level_share / 10.0
    once = first_step_at(STEPS, values, level)
    assert first_step_at(STEPS * scale, values, level) == pytest.approx(once * scale)
