"""The ensemble against densities whose moments are known."""

import numpy as np
import pytest

from mars_core.surface.sampler import draw_states

MEAN, SD = np.array([0.3, -0.2, 0.5]), np.array([0.2, 0.5, 0.05])
WEIGHTS = np.array([0.2, 0.5, 0.3])


def log_likelihood(exponent, hyper):
    return np.log(WEIGHTS[exponent]) - 0.5 * (((hyper - MEAN) / SD) ** 2).sum(axis=1)


def states(seed):
    return draw_states(log_likelihood, np.full(3, -3.0), np.full(3, 3.0), np.log(np.full(3, 1 / 3)), seed)


def test_moments_and_weights_of_a_known_density():
    """8 runs of 1,000 correlated draws each: some 400 independent ones, so means within 0.25 standard deviations,
    standard deviations within 25%, and shares within 0.1 (4 standard errors of 0.025)."""
    found = [states(seed) for seed in range(8)]
    hyper = np.concatenate([one.hyper for one in found])
    exponent = np.concatenate([one.exponent for one in found])
    assert np.all(np.abs(hyper.mean(axis=0) - MEAN) < 0.25 * SD)
    np.testing.assert_allclose(hyper.std(axis=0), SD, rtol=0.25)
    np.testing.assert_allclose(np.bincount(exponent, minlength=3) / len(exponent), WEIGHTS, atol=0.1)


def test_the_same_seed_gives_the_same_draws():
    np.testing.assert_array_equal(states(5).hyper, states(5).hyper)


def test_draws_stay_within_bounds():
    found = draw_states(
        lambda exponent, hyper: np.zeros(len(hyper)), np.array([-1.0, 0.0]), np.array([1.0, 2.0]), np.zeros(1), 0
    )
    assert np.all(found.hyper >= [-1.0, 0.0])
    assert np.all(found.hyper <= [1.0, 2.0])
    assert found.hyper[:, 0].mean() == pytest.approx(0.0, abs=0.25)  # uniform: sd 0.58, some 60 independent draws
