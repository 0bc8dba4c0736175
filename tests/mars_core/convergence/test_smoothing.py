import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import LinearConstraint, minimize

from mars_core.convergence.curves import falling_curve

losses = arrays(np.float64, st.integers(2, 12), elements=st.floats(0.1, 10))


@given(losses)
def test_falls_and_ends_at_the_lowest_loss(loss):
    smooth = falling_curve(loss)
    assert np.all(np.diff(smooth) <= 1e-12)
    assert smooth[-1] == pytest.approx(loss.min())


def test_matches_a_constrained_least_squares_solver():
    loss = np.array([3.0, 2.4, 2.6, 2.1, 2.3, 1.9, 1.5])
    falling = LinearConstraint(np.diff(np.eye(loss.size), axis=0), -np.inf, 0.0)
    oracle = minimize(lambda x: np.sum((x - loss) ** 2), loss, constraints=falling, method="SLSQP")
    # SLSQP stops at about 1e-6 in the objective, so about 1e-3 in the values
    np.testing.assert_allclose(falling_curve(loss), oracle.x, atol=1e-3)


def test_what_follows_the_lowest_point_moves_nothing():
    falling = np.array([3.0, 2.5, 2.0, 1.5])
    over_fitted = np.concatenate([falling, [1.8, 2.6, 9.0]])
    np.testing.assert_allclose(falling_curve(over_fitted)[:4], falling)
    np.testing.assert_allclose(falling_curve(over_fitted)[4:], 1.5)
